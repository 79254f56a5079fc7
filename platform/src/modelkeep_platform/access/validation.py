"""Strict validation of a tenant's policy text, with the place of each error.

Cedar names the policy and the word it stumbles over, not the line; the place is found again among the tokens. A type
error names no word: it is placed at the policy's condition.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

import cedarpy

from modelkeep_platform.access.lexer import LexicalError, PolicyProblem, PolicySource, Token, policies_of, problem_at
from modelkeep_platform.access.shipped import SHIPPED, shipped
from modelkeep_platform.core.errors import TooLargeError, UnprocessableError
from modelkeep_platform.core.limits import MAX_POLICY_BYTES

_LABEL: Final = re.compile(r'"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"\Z')
_POLICY_NUMBER: Final = re.compile(r"policy(\d+)\Z")
_PREFIX: Final = re.compile(r"^(?:Policy parse error: |for policy `policy\d+`, )+")
_NAMED: Final = re.compile(r"`([^`]+)`|'([^'\s]{1,3})'|: (\w+)$")
_LAST_NAME: Final = re.compile(r'(?:::)?("(?:[^"\\]|\\.)*"|[_a-zA-Z]\w*|\W{1,2})$')
_MAX_ERRORS: Final = 20
_MAX_MESSAGE: Final = 300


class InvalidPolicyError(UnprocessableError):
    """The policy text is refused; `details["errors"]` lists message, line and column."""

    code = "invalid_policy"

    def __init__(self, problems: Sequence[PolicyProblem]) -> None:
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
        InvalidPolicyError: a syntax or type error, an unknown action or attribute, a template, an id that is used
            twice, reserved or unreadable, too many policies, or one that nests or chains too much.
    """
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise InvalidPolicyError([problem_at(text, exc.start, "half of a surrogate pair")]) from exc
    if size > MAX_POLICY_BYTES:
        raise TooLargeError(f"a policy text has at most {MAX_POLICY_BYTES} bytes")
    try:
        sources = policies_of(text)
    except LexicalError as exc:
        raise InvalidPolicyError([exc.problem]) from exc
    _check_labels(text, sources)
    result = cedarpy.validate_policies(text, shipped("schema.cedarschema"), release_gil=True)
    if not result.validation_passed:
        raise InvalidPolicyError(_located(text, sources, result.errors))
    policies = cedarpy.PolicySet.from_str(text, release_gil=True)
    # INVARIANT: what was measured above is what Cedar read.
    if len(policies) != len(sources):
        raise InvalidPolicyError([problem_at(text, 0, "the text cannot be cut into its policies")])
    return policies


def warnings_of(text: str) -> tuple[str, ...]:
    """Return what is legal and probably not meant, of a text that `validate` accepted."""
    sources = policies_of(text)
    if not sources:
        return ("the text holds no policy: roles alone decide",)
    return tuple(
        f"the policy at line {problem_at(text, source.start, '').line} has no `@id`; refusals cannot name it"
        for source in sources
        if source.label() is None
    )


@cache
def reserved_labels() -> frozenset[str]:
    """Return the quoted ids of the shipped policies, which no tenant's policy may carry."""
    sources = [source for name in SHIPPED for source in policies_of(shipped(name))]
    return frozenset(label.text for source in sources if (label := source.label()) is not None)


def _check_labels(text: str, sources: Sequence[PolicySource]) -> None:
    # Ids are shown to callers and written to the log: one policy each, and nothing but plain characters.
    seen: set[str] = set()
    for source in sources:
        label = source.label()
        if label is None:
            continue
        problem = None
        if not _LABEL.match(label.text):
            problem = "an `@id` is 1 to 64 of letters, digits, `.`, `_`, `-`"
        elif label.text in reserved_labels():
            problem = f"the id {label.text} belongs to a policy of the platform; choose another"
        elif label.text in seen:
            problem = f"the id {label.text} is used twice"
        if problem is not None:
            raise InvalidPolicyError([problem_at(text, label.start, problem)])
        seen.add(label.text)


def _located(
    text: str, sources: Sequence[PolicySource], errors: Sequence[cedarpy.ValidationError]
) -> list[PolicyProblem]:
    problems: dict[tuple[int, int], PolicyProblem] = {}
    unknown = {error.policy_id for error in errors if "unrecognized" in error.error}
    for error in errors:
        if "unable to find an applicable action" in error.error and error.policy_id in unknown:
            continue  # it follows from the unknown name
        message = _PREFIX.sub("", error.error)[:_MAX_MESSAGE]
        problem = problem_at(text, _offset(text, sources, error), message)
        problems.setdefault((problem.line, problem.column), problem)
    ordered = [problems[place] for place in sorted(problems)]
    return ordered[:_MAX_ERRORS] or [problem_at(text, 0, "the policy is not valid")]


def _offset(text: str, sources: Sequence[PolicySource], error: cedarpy.ValidationError) -> int:
    if "end of input" in error.error:
        return max(len(text.rstrip()) - 1, 0)
    source = _source(text, sources, error.policy_id)
    if source is None:
        return 0
    for match in _NAMED.finditer(error.error):
        name = next(group for group in match.groups() if group)
        # Its end alone: a search from each of its characters, of a name as long as a text may be, took a minute.
        last = _LAST_NAME.search(name[-_MAX_MESSAGE:])
        token = None if last is None or _POLICY_NUMBER.match(name) else _find(source.tokens, last[1])
        if token is not None:
            return token.start
    if "scope" in error.error:
        return source.start
    opening = next((at for at, token in enumerate(source.tokens[:-1]) if token.text == "{"), None)
    return source.start if opening is None else source.tokens[opening + 1].start


def _source(text: str, sources: Sequence[PolicySource], policy_id: str) -> PolicySource | None:
    number = _POLICY_NUMBER.match(policy_id)
    if number is not None and int(number[1]) < len(sources):
        return sources[int(number[1])]
    for source in sources:  # a syntax error names no policy: it is in the first that does not parse alone
        try:
            cedarpy.PolicySet.from_str(text[source.start : source.end])
        except ValueError:
            return source
    return None


def _find(tokens: Sequence[Token], name: str) -> Token | None:
    found = [at for at, token in enumerate(tokens) if name in {token.text, token.text.strip('"')}]
    if not found:
        return None
    # An attribute's name may be a variable's too: prefer the place where it is an attribute.
    selected = [at for at in found if at and tokens[at - 1].text in {".", "has", "[", "::"}]
    return tokens[(selected or found)[0]]
