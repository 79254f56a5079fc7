"""Policies are validated strictly; every refusal says what and where."""

from typing import Any

import cedarpy
import pytest

from modelkeep_platform.access import validation
from modelkeep_platform.access.validation import InvalidPolicyError, reserved_labels, validate, warnings_of
from modelkeep_platform.core.errors import ModelkeepError, TooLargeError
from modelkeep_platform.core.limits import MAX_POLICY_BYTES

PERMIT = "permit (principal, action, resource);"


def problems(text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(InvalidPolicyError) as raised:
        validate(text)
    found: Any = raised.value.details["errors"]
    return [(at["line"], at["column"], at["message"]) for at in found]


def test_valid_policies_are_returned_compiled() -> None:
    assert len(validate(f'@id("a") {PERMIT} {PERMIT}')) == 2
    assert len(validate("// nothing")) == 0


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert len(validate("//" + "é" * (MAX_POLICY_BYTES // 2 - 1))) == 0
    with pytest.raises(TooLargeError) as raised:
        validate("//" + "é" * (MAX_POLICY_BYTES // 2))
    assert raised.value.error_code == "too_large"


def test_half_a_surrogate_pair_is_refused_at_its_place() -> None:
    assert problems("//\n \ud800") == [(2, 2, "half of a surrogate pair")]


@pytest.mark.parametrize("label", ["a", "A9._-z", "x" * 64])
def test_ids_of_plain_characters_are_taken(label: str) -> None:
    assert len(validate(f'@id("{label}") {PERMIT}')) == 1


@pytest.mark.parametrize("label", ["", " ", "-a", "x" * 65, "a b", "a\\u{62}", "é", "<i>", "a\nb"], ids=repr)
def test_ids_of_other_characters_are_refused(label: str) -> None:
    ((line, column, message),) = problems(f'\n@id("{label}") {PERMIT}')
    assert (line, column) == (2, 5)
    assert message.startswith("an `@id` is 1 to 64")


@pytest.mark.parametrize("label", sorted(reserved_labels()))
def test_ids_of_the_platform_are_refused(label: str) -> None:
    assert "belongs to a policy of the platform" in problems(f"@id({label}) {PERMIT}")[0][2]


def test_an_error_is_placed_where_an_attribute_is_one_and_not_where_a_variable_has_its_name() -> None:
    line = 'when { principal.name == "a" && context.resource };'
    assert problems(f"forbid (principal, action, resource)\n{line}")[0][:2] == (2, line.index("resource") + 1)


def test_errors_are_in_order_of_place_one_a_place_and_at_most_twenty() -> None:
    text = "\n".join(f'forbid (principal, action == Modelkeep::Action::"x:{n}", resource);' for n in range(30))
    found = problems(text)
    assert [line for line, _, _ in found] == list(range(1, 21))
    assert {column for _, column, _ in found} == {49}


def test_messages_are_bounded() -> None:
    record = ", ".join(f"a{n}: {n}" for n in range(500))
    assert all(len(message) <= 300 for _, _, message in problems(PERMIT[:-1] + f" when {{ {{{record}}} == 1 }};"))


def test_a_syntax_error_after_good_policies_is_placed_in_its_own() -> None:
    assert problems(f"{PERMIT}\n{PERMIT}\npermit (principal, action);")[0][0] == 3


def test_an_error_without_a_policy_is_placed_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ([], [{"error": "strange"}]):
        result = cedarpy.ValidationResult({"validation_passed": False, "errors": errors})
        monkeypatch.setattr(cedarpy, "validate_policies", lambda *_, result=result, **__: result)
        assert problems(PERMIT) == [(1, 1, "strange" if errors else "the policy is not valid")]


def test_an_error_in_a_policy_without_a_condition_is_placed_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [{"policy_id": "policy1", "error": "for policy `policy1`, strange"}]
    result = cedarpy.ValidationResult({"validation_passed": False, "errors": errors})
    monkeypatch.setattr(cedarpy, "validate_policies", lambda *_, **__: result)
    assert problems(f"{PERMIT}\n {PERMIT}") == [(2, 2, "strange")]


def test_a_text_that_cedar_cuts_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "policies_of", lambda _: [])
    assert problems(PERMIT) == [(1, 1, "the text cannot be cut into its policies")]


def test_what_is_legal_and_probably_not_meant_is_said() -> None:
    assert warnings_of("// ;") == ("the text holds no policy: roles alone decide",)
    assert warnings_of(f'@id("a") {PERMIT}') == ()
    assert warnings_of(f'@id("a") {PERMIT}\n\n{PERMIT}') == (
        "the policy at line 3 has no `@id`; refusals cannot name it",
    )


def test_errors_are_the_callers() -> None:
    assert issubclass(InvalidPolicyError, ModelkeepError)
    assert InvalidPolicyError.code == "invalid_policy"
