"""Errors, references, callers and the enums: what other rooms and the wire rely on."""

import inspect
import re

import pytest

from fakes.core import ACME, operator_caller, tenant_caller
from modelkeep_platform.core import errors
from modelkeep_platform.core.actions import GRANTABLE, PLATFORM_ACTIONS, Action
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refs import PLATFORM_REF, Kind, ResourceRef, collection, missing
from modelkeep_platform.core.sealing import Purpose, Suite

CLASSES = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, errors.ModelkeepError) and item.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_is_of_one_side_and_has_a_code(error: type[errors.ModelkeepError]) -> None:
    assert re.fullmatch(r"[a-z_]+", error.code)
    if error is not errors.ModelkeepError:
        assert issubclass(error, errors.CallerError) != issubclass(error, errors.PlatformError)


def test_an_error_carries_its_message_code_and_details() -> None:
    plain = errors.ConflictError("the name is taken")
    assert (str(plain), plain.message, plain.error_code, plain.details) == (
        "the name is taken",
        "the name is taken",
        "conflict",
        {},
    )
    special = errors.ConflictError("the name is taken", code="name_taken", details={"name": "x"})
    assert (special.error_code, special.details) == ("name_taken", {"name": "x"})


def test_a_rate_limit_says_when_to_come_back() -> None:
    error = errors.RateLimitedError("too many", retry_after_s=7)
    assert (error.retry_after_s, error.details, error.error_code) == (7, {"retry_after_s": 7}, "rate_limited")


def test_every_action_is_a_kind_and_a_verb() -> None:
    assert all(re.fullmatch(r"[a-z_]+:[a-z_]+", action) for action in Action)


def test_what_can_be_granted_is_never_the_platforms() -> None:
    assert not GRANTABLE & PLATFORM_ACTIONS
    assert {action.split(":")[0] for action in GRANTABLE} == {"model", "dataset"}


def test_a_missing_reference_is_missing_and_others_are_not() -> None:
    assert missing(ACME, Kind.MODEL).is_missing
    assert missing(ACME, Kind.MODEL) == ResourceRef(
        owner=ACME, kind=Kind.MODEL, object_id=missing(ACME, Kind.JOB).object_id
    )
    assert not collection(ACME, Kind.MODEL).is_missing
    assert not PLATFORM_REF.is_missing


def test_an_operator_belongs_to_the_platform_alone() -> None:
    assert operator_caller().tenant == PLATFORM
    assert tenant_caller().tenant == ACME


def test_the_words_of_the_sealed_format_do_not_change() -> None:
    # They are part of every context: another word, and nothing sealed before opens again.
    assert {suite.name: int(suite) for suite in Suite} == {"SMALL": 1, "LARGE": 2}
    assert {
        "weights", "graph", "dataset", "checkpoint", "manifest", "audit", "wrap-dek", "wrap-kek", "signing-key",
    } <= {purpose.value for purpose in Purpose}  # fmt: skip
