"""Whatever text comes as a policy: valid, or refused with its documented error and a place that is in the text."""

import string
import time
from typing import Any

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep_platform.access.lexer import LexicalError, policies_of
from modelkeep_platform.access.validation import InvalidPolicyError, validate, warnings_of
from modelkeep_platform.core.errors import TooLargeError

SOON_S = 5.0
_PIECES = (
    "permit forbid when unless principal action resource context principal.name context.version resource.tenant "
    'Modelkeep::Action::"model:read" Modelkeep::User::"u" Modelkeep::Model in is has like if then else true false '
    '"text" "a*" 7 9223372036854775808 == != < <= && || ! - + * ( ) [ ] { } , ; : :: . @id("a") @ ?principal // \\ " '
    'principal.roles.contains("analyst") ip("10.0.0.1") decimal("1.2") {a:1} [1] __cedar \n \r \t é \x00 \u202e'
)
WORDS = _PIECES.split(" ")
FRAGMENTS = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)
CONDITIONS = st.lists(st.sampled_from([word for word in WORDS if word not in {"//", '"', ";"}]), max_size=12)
POLICIES = CONDITIONS.map(lambda words: f"permit (principal, action, resource) when {{ {' '.join(words)} }};")
ANY = st.text(max_size=200) | FRAGMENTS | POLICIES | st.text(alphabet=string.printable, max_size=200)
DIALECT = st.text(alphabet='ab"\\/@;:.,(){}[]<>=!&|+-*?% \n\r\t\x0b\x1c\x85\u2028é7', max_size=60)


def outcome(text: str) -> cedarpy.PolicySet | None:
    try:
        return validate(text)
    except InvalidPolicyError as exc:
        problems: Any = exc.details["errors"]
        assert 1 <= len(problems) <= 20
        # Half a surrogate pair cannot be cut into lines by everybody: lines are those of LF.
        lines = text.split("\n")
        for at in problems:
            assert 1 <= at["line"] <= len(lines)
            assert 1 <= at["column"] <= len(lines[at["line"] - 1]) + 1
            assert 0 < len(at["message"]) <= 300
        return None
    except TooLargeError:
        return None


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_any_text_is_valid_or_refused_at_a_place_in_it(text: str) -> None:
    policies = outcome(text)
    if policies is not None:
        assert len(policies) == len(policies_of(text))
        assert all(isinstance(warning, str) for warning in warnings_of(text))


@settings(max_examples=300, deadline=None)
@given(ANY | DIALECT)
def test_what_cedar_accepts_is_cut_as_cedar_cuts_it(text: str) -> None:
    try:
        policies = cedarpy.PolicySet.from_str(text)
    except ValueError:
        return
    try:
        sources = policies_of(text)
    except LexicalError:  # stricter is fine: a template, a limit, hidden text
        return
    assert len(sources) == len(policies)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='([{}])!-.;:" \n', max_size=300), st.integers(1, 40))
def test_no_nesting_reaches_cedar_beyond_the_limit(text: str, times: int) -> None:
    outcome(text * times)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["(", "[", "{", "!", "-", "if ", "{a:", "[[", "a.", "a has ", '"', "//", "@id(", "\\", "&&", "? "])
)
def test_no_bomb_of_one_piece_reaches_cedar(piece: str) -> None:
    for count in (33, 201, 65_536 // len(piece)):
        assert outcome(f"permit (principal, action, resource) when {{ {piece * count}") is None


LONG = 60_000


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param(f"principal is {'A' * LONG}::B, action", id="type"),
        pytest.param(f'principal, action == {"A" * LONG}::Action::"x !!!"', id="action"),
    ],
)
def test_a_name_as_long_as_a_text_is_refused_soon(scope: str) -> None:
    began = time.process_time()
    assert outcome(f"permit ({scope}, resource);") is None
    assert time.process_time() - began < SOON_S
