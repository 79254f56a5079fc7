"""Contexts: every field is in them, and none can be taken for another."""

from collections.abc import Callable
from typing import Any

import pytest

from modelkeep_platform.core.canonical import canonical_bytes
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.keys.context import context, dek_context, kek_context

OF_OBJECT: dict[str, Any] = {
    "purpose": Purpose.WEIGHTS,
    "tenant": TenantId("t"),
    "object_id": ObjectId("o"),
    "version": 3,
    "name": "part-0",
    "suite": Suite.LARGE,
}
OF_DEK: dict[str, Any] = {"tenant": TenantId("t"), "object_id": ObjectId("o"), "kek_version": 3}
OF_KEK: dict[str, Any] = {"tenant": TenantId("t"), "version": 3, "root_id": "r"}


def _dek(**fields: Any) -> bytes:
    return dek_context(fields.pop("tenant"), fields.pop("object_id"), **fields)


def _kek(**fields: Any) -> bytes:
    return kek_context(fields.pop("tenant"), **fields)


def test_the_fields_are_those_of_the_page_in_its_order() -> None:
    assert context(**OF_OBJECT) == canonical_bytes("weights", "t", "o", 3, "part-0", 2)
    assert _dek(**OF_DEK) == canonical_bytes("wrap-dek", "t", "o", 3, 1)
    assert _kek(**OF_KEK) == canonical_bytes("wrap-kek", "t", 3, "r", 1)


CHANGES = [
    (make, fields, name) for make, fields in ((context, OF_OBJECT), (_dek, OF_DEK), (_kek, OF_KEK)) for name in fields
]


@pytest.mark.parametrize(("make", "fields", "name"), CHANGES, ids=lambda value: value if isinstance(value, str) else "")
def test_another_value_of_any_field_gives_another_context(
    make: Callable[..., bytes], fields: dict[str, Any], name: str
) -> None:
    others = {"purpose": Purpose.DATASET, "suite": Suite.SMALL}
    value = others.get(name, 4 if isinstance(fields[name], int) else fields[name] + "x")
    assert make(**(fields | {name: value})) != make(**fields)


def test_a_sealed_value_cannot_pass_for_a_wrapped_key() -> None:
    for purpose in (Purpose.WRAP_DEK, Purpose.WRAP_KEK):
        made = context(**(OF_OBJECT | {"purpose": purpose, "suite": Suite.SMALL}))
        assert made not in (_dek(**OF_DEK), _kek(**OF_KEK))


def test_a_version_is_not_negative() -> None:
    with pytest.raises(ValueError, match="not negative"):
        context(**(OF_OBJECT | {"version": -1}))
