"""Cedar's tokens, and the limits a text must keep before Cedar's parser may see it.

Cedar's parser recurses: a few thousand opening brackets, well under any sensible size limit, end the process with a
stack overflow. Past its own recursion limit the validator says nothing at all, and one long `has a.a.a` takes
minutes. So a text is first cut into exactly the tokens of Cedar's grammar (cedar-policy-core, `grammar.lalrpop`), and
refused with its place when it nests or chains too much. What is no token is refused here too, and what would make a
text read otherwise than it is: NUL and the characters that reorder a line.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_POLICIES: Final = 200
MAX_DEPTH: Final = 32
MAX_OPERATORS: Final = 200

# INVARIANT: a comment ends at CR as at LF, and `\s` is Rust's, not Python's: whoever hid brackets from this scanner
# would show them to Cedar.
_TOKEN: Final = re.compile(
    r"""
    (?P<blank>[\t-\r\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+|//[^\n\r]*)
    |(?P<text>"(?:\\.|[^"\\])*")
    |(?P<slot>\?[_a-zA-Z][_a-zA-Z0-9]*)
    |(?P<word>[_a-zA-Z][_a-zA-Z0-9]*)
    |(?P<number>[0-9]+)
    |(?P<sign>::|==|!=|<=|>=|\|\||&&|[@.,;:(){}\[\]<>+\-*/%!=])
    """,
    re.VERBOSE,
)
_HIDING: Final = re.compile("[\0\u202a-\u202e\u2066-\u2069]")
_PAIRS: Final = {"(": ")", "[": "]", "{": "}"}
_CLOSING: Final = frozenset(_PAIRS.values())
_OPERATORS: Final = frozenset(
    {".", "==", "!=", "<", "<=", ">=", ">", "=", "||", "&&", "+", "-", "*", "/", "%", "!", "[", "{", "("}
    | {"in", "has", "like", "is", "if"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyProblem:
    """One error and where it stands; line and column count from 1."""

    message: str
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token: its kind (``text``, ``slot``, ``word``, ``number``, ``sign``), its characters, where it begins."""

    kind: str
    text: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """One policy of a text: its tokens, the closing semicolon included if there is one."""

    tokens: tuple[Token, ...]

    @property
    def start(self) -> int:
        """Where it begins."""
        return self.tokens[0].start

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.tokens[-1].start + len(self.tokens[-1].text)

    def label(self) -> Token | None:
        """Return the text token of its ``@id("…")`` annotation, or None."""
        for sign, word, opening, value in zip(
            self.tokens, self.tokens[1:], self.tokens[2:], self.tokens[3:], strict=False
        ):
            if (sign.text, word.text, opening.text, value.kind) == ("@", "id", "(", "text"):
                return value
        return None


class LexicalError(Exception):
    """The text is refused before it is parsed."""

    def __init__(self, problem: PolicyProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def policies_of(text: str) -> list[PolicySource]:
    """Cut `text` into its policies.

    Raises:
        LexicalError: something is no token or hides text, brackets do not match, a template slot is used, or a limit
            is passed.
    """
    hiding = _HIDING.search(text)
    if hiding is not None:
        raise LexicalError(problem_at(text, hiding.start(), "this character hides or reorders text"))
    sources: list[PolicySource] = []
    tokens: list[Token] = []
    for token in _tokens(text):
        if len(sources) == MAX_POLICIES:
            raise _refused(text, token, f"a tenant has at most {MAX_POLICIES} policies")
        tokens.append(token)
        if token.text == ";":
            sources.append(PolicySource(tokens=tuple(tokens)))
            tokens = []
    if tokens:
        sources.append(PolicySource(tokens=tuple(tokens)))
    for source in sources:
        _check(text, source)
    return sources


def _check(text: str, source: PolicySource) -> None:
    # INVARIANT: brackets match and nest at most MAX_DEPTH, so that no parser can nest deeper, recovering or not.
    opened: list[Token] = []
    operators = conditionals = 0
    for token in source.tokens:
        if token.kind == "slot":
            raise _refused(text, token, "templates are not used here; write a policy, or give a grant")
        if token.text in _CLOSING:
            opening = opened.pop() if opened else None
            if opening is None:
                raise _refused(text, token, f"`{token.text}` closes nothing")
            if _PAIRS[opening.text] != token.text:
                raise _refused(text, token, f"`{token.text}` does not close `{opening.text}`")
        if token.text in _PAIRS:
            opened.append(token)
        operators += token.text in _OPERATORS
        conditionals += token.text == "if"
        if len(opened) > MAX_DEPTH or conditionals > MAX_DEPTH:
            raise _refused(text, token, f"a policy nests at most {MAX_DEPTH} deep; split it")
        if operators > MAX_OPERATORS:
            raise _refused(text, token, f"a policy has at most {MAX_OPERATORS} operators; split it")
    if opened:
        raise _refused(text, opened[-1], f"`{opened[-1].text}` is never closed")


def problem_at(text: str, offset: int, message: str) -> PolicyProblem:
    """Say `message` of the character at `offset`, in lines and columns from 1."""
    line = text.count("\n", 0, offset) + 1
    return PolicyProblem(message=message, line=line, column=offset - text.rfind("\n", 0, offset))


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            unfinished = "this text has no closing quote" if text[at] == '"' else "this character is no part of Cedar"
            raise LexicalError(problem_at(text, at, unfinished))
        if match.lastgroup is not None and match.lastgroup != "blank":
            found.append(Token(kind=match.lastgroup, text=match.group(), start=at))
        at = match.end()
    return found


def _refused(text: str, token: Token, message: str) -> LexicalError:
    return LexicalError(problem_at(text, token.start, message))
