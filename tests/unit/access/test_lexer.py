"""Policy texts are cut into Cedar's tokens, and what would harm its parser is refused with line and column."""

import cedarpy
import pytest

from modelkeep_platform.access.lexer import (
    MAX_DEPTH,
    MAX_OPERATORS,
    MAX_POLICIES,
    LexicalError,
    PolicyProblem,
    policies_of,
    problem_at,
)

PERMIT = "permit (principal, action, resource);"


def problem(text: str) -> PolicyProblem:
    with pytest.raises(LexicalError) as raised:
        policies_of(text)
    return raised.value.problem


def when(condition: str) -> str:
    return f"permit (principal, action, resource) when {{ {condition} }};"


def test_a_text_is_cut_at_its_semicolons_and_not_at_those_in_text_or_comments() -> None:
    second_text = when('context.name == ";"')
    text = f'// one; two;\n@id("a;b")\n{PERMIT}\n{second_text}// ;'
    first, second = policies_of(text)
    assert text[first.start : first.end].startswith('@id("a;b")')
    assert text[second.start : second.end] == second_text
    assert len(cedarpy.PolicySet.from_str(text)) == 2


def test_tokens_are_the_longest_and_know_where_they_begin() -> None:
    (source,) = policies_of('a::B::"c" != 12<=>=&&||==')
    assert [(token.kind, token.text) for token in source.tokens] == [
        ("word", "a"),
        ("sign", "::"),
        ("word", "B"),
        ("sign", "::"),
        ("text", '"c"'),
        ("sign", "!="),
        ("number", "12"),
        ("sign", "<="),
        ("sign", ">="),
        ("sign", "&&"),
        ("sign", "||"),
        ("sign", "=="),
    ]
    assert [token.start for token in source.tokens] == [0, 1, 3, 4, 6, 10, 13, 15, 17, 19, 21, 23]


@pytest.mark.parametrize("text", ["", " \t\r\n", "// nothing", "\u2028\u3000\x85\x0b\x0c"], ids=repr)
def test_a_text_without_tokens_holds_no_policy(text: str) -> None:
    assert policies_of(text) == []
    assert len(cedarpy.PolicySet.from_str(text)) == 0


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("permit\n  # no", 2, 3, "no part of Cedar"),
        ("permit 'x'", 1, 8, "no part of Cedar"),
        ("a \x1c b", 1, 3, "no part of Cedar"),
        ("permit é", 1, 8, "no part of Cedar"),
        ('x\r\n "open', 2, 2, "no closing quote"),
        ('"ends in \\', 1, 1, "no closing quote"),
        ('"a \\\n"', 1, 1, "no closing quote"),
        ("a\n\0", 2, 1, "hides or reorders"),
        ("// \u202e", 1, 4, "hides or reorders"),
        ('"\u2066"', 1, 2, "hides or reorders"),
        ("permit (\n)]", 2, 2, "`]` closes nothing"),
        ("permit ([)", 1, 10, "`)` does not close `[`"),
        ("a { b\n( c", 2, 1, "`(` is never closed"),
        ("permit (principal == ?principal, action, resource);", 1, 22, "templates"),
        ("permit (?x);", 1, 9, "templates"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_policy_is_refused_at_its_place(text: str, line: int, column: int, says: str) -> None:
    found = problem(text)
    assert (found.line, found.column) == (line, column)
    assert says in found.message


@pytest.mark.parametrize("opening", ["(", "[", "{"])
def test_nesting_stops_at_the_limit(opening: str) -> None:
    closing = {"(": ")", "[": "]", "{": "}"}[opening]
    assert policies_of(opening * MAX_DEPTH + closing * MAX_DEPTH)
    found = problem("\n" + opening * (MAX_DEPTH + 1) + closing * (MAX_DEPTH + 1))
    assert (found.line, found.column) == (2, MAX_DEPTH + 1)
    assert f"at most {MAX_DEPTH} deep" in found.message


def test_conditionals_stop_at_the_limit() -> None:
    assert policies_of("if " * MAX_DEPTH)
    assert f"at most {MAX_DEPTH} deep" in problem("if " * (MAX_DEPTH + 1)).message


@pytest.mark.parametrize("operator", ["!", "-", ".", "==", "&&", "has", "in", "+", "like", "is", "="])
def test_chains_stop_at_the_limit_and_each_policy_has_its_own(operator: str) -> None:
    chain = f" {operator} ".join("a" * (MAX_OPERATORS + 1))
    assert len(policies_of(f"{chain};{chain};")) == 2
    found = problem(f"{chain};\n{chain} {operator} a;")
    assert found.line == 2
    assert f"at most {MAX_OPERATORS} operators" in found.message


def test_policies_stop_at_the_limit() -> None:
    assert len(policies_of(PERMIT * MAX_POLICIES)) == MAX_POLICIES
    assert len(policies_of(PERMIT * MAX_POLICIES + "// more")) == MAX_POLICIES
    found = problem(PERMIT * MAX_POLICIES + "\npermit")
    assert (found.line, found.column) == (2, 1)
    assert f"at most {MAX_POLICIES} policies" in found.message


def test_a_comment_ends_at_a_carriage_return_as_it_does_for_cedar() -> None:
    text = "// quiet\rpermit (principal, action, resource);"
    assert len(policies_of(text)) == len(cedarpy.PolicySet.from_str(text)) == 1


@pytest.mark.parametrize(
    ("annotations", "label"),
    [('@id("a")', '"a"'), ('@note("x") @id ( "a" )', '"a"'), ("", None), ("@id", None), ('@note("id")', None)],
    ids=["one", "second", "none", "bare", "other"],
)
def test_the_label_is_the_text_of_the_id_annotation(annotations: str, label: str | None) -> None:
    (source,) = policies_of(f"{annotations} {PERMIT}")
    found = source.label()
    assert (None if found is None else found.text) == label


def test_places_count_lines_and_columns_from_one() -> None:
    text = "ab\ncd\n\nx"
    places = [(problem_at(text, at, "").line, problem_at(text, at, "").column) for at in range(len(text))]
    assert places == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1)]
