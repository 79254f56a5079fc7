"""Strict validation of a tenant's policy text, with the place of each error.

Cedar's validator names the policy and the word it stumbles over, not the line; the place is found again here, by a
small scanner that knows Cedar's strings and comments.
"""

import re
from dataclasses import dataclass
from typing import Final

import cedarpy

from modelkeep_platform.access.shipped import shipped
from modelkeep_platform.core.errors import TooLargeError, UnprocessableError
from modelkeep_platform.core.limits import MAX_POLICY_BYTES

_LEXEME: Final = re.compile(r'//[^\n]*|"(?:[^"\\]|\\.)*"|;', re.DOTALL)
_QUOTED: Final = re.compile(r"`([^`]+)`")
_POLICY_NUMBER: Final = re.compile(r"policy(\d+)\Z")
_MAX_ERRORS: Final = 20
_MAX_POLICIES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyProblem:
    """One error and where it stands; line and column count from 1."""

    message: str
    line: int
    column: int


class InvalidPolicyError(UnprocessableError):
    """The policy text is refused; `details["errors"]` lists message, line and column."""

    code = "invalid_policy"

    def __init__(self, problems: list[PolicyProblem]) -> None:
        first = problems[0]
        listed = [{"message": at.message, "line": at.line, "column": at.column} for at in problems]
        super().__init__(
            f"the policy is refused at line {first.line}, column {first.column}: {first.message}",
            details={"errors": listed},
        )


def validate(text: str) -> cedarpy.PolicySet:
    """Return the compiled policies, if they are valid in the strict sense.

    Raises:
        TooLargeError: the text is longer than 64 KiB.
        InvalidPolicyError: a syntax or type error, an unknown action or attribute, a template, too many policies.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_POLICY_BYTES:
        raise TooLargeError(f"a policy text has at most {MAX_POLICY_BYTES} bytes")
    places = _policies(text)
    if len(places) > _MAX_POLICIES:
        raise InvalidPolicyError(
            [_problem(text, places[_MAX_POLICIES], f"a tenant has at most {_MAX_POLICIES} policies", "")]
        )
    result = cedarpy.validate_policies(text, shipped("schema.cedarschema"), release_gil=True)
    if not result.validation_passed:
        raise InvalidPolicyError(_located(text, places, result.errors))
    policies = cedarpy.PolicySet.from_str(text)
    if len(policies.templates()):
        at = text.index("?") if "?" in text else 0
        raise InvalidPolicyError([_at(text, at, "templates are not used here; write a policy, or give a grant")])
    return policies


def _policies(text: str) -> list[tuple[int, int]]:
    """Return where each policy begins and ends, strings and comments aside."""
    places: list[tuple[int, int]] = []
    start = 0
    for match in _LEXEME.finditer(text):
        if match.group() == ";":
            places.append((_skip_blank(text, start), match.end()))
            start = match.end()
    rest = _skip_blank(text, start)
    if rest < len(text):
        places.append((rest, len(text)))
    return places


def _skip_blank(text: str, start: int) -> int:
    match = re.compile(r"(?:\s|//[^\n]*)*").match(text, start)
    return match.end() if match else start


def _located(text: str, places: list[tuple[int, int]], errors: list[cedarpy.ValidationError]) -> list[PolicyProblem]:
    problems: dict[tuple[int, int], PolicyProblem] = {}
    for error in errors[:_MAX_ERRORS]:
        message = re.sub(r"^(Policy parse error: |for policy `policy\d+`, )", "", error.error)
        problem = _problem(text, _place(text, places, error.policy_id), message, error.error)
        problems.setdefault((problem.line, problem.column), problem)
    return list(problems.values())


def _place(text: str, places: list[tuple[int, int]], policy_id: str) -> tuple[int, int]:
    number = _POLICY_NUMBER.match(policy_id)
    if number is not None and int(number[1]) < len(places):
        return places[int(number[1])]
    for start, end in places:
        try:
            cedarpy.PolicySet.from_str(text[start:end])
        except ValueError:
            return start, end
    return 0, len(text)


def _problem(text: str, place: tuple[int, int], message: str, error: str) -> PolicyProblem:
    start, end = place
    if "end of input" in error:
        return _at(text, max(len(text.rstrip()) - 1, 0), message)
    words = [word for quoted in _QUOTED.findall(error) for word in re.findall(r'"([^"]+)"|([\w.]+)$', quoted)]
    last = re.search(r": ?(\w+)$", message)
    candidates = [word for pair in words for word in pair if word] + ([last[1]] if last else [])
    for word in candidates:
        at = text.find(word, start, end)
        if at >= 0 and not word.startswith("policy"):
            return _at(text, at, message)
    return _at(text, start, message)


def _at(text: str, offset: int, message: str) -> PolicyProblem:
    line = text.count("\n", 0, offset) + 1
    return PolicyProblem(message=message, line=line, column=offset - text.rfind("\n", 0, offset))
