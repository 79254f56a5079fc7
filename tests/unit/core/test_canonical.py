"""Canonical bytes follow the published vectors and are injective."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep_platform.core import canonical
from modelkeep_platform.core.canonical import canonical_bytes
from modelkeep_platform.core.sealing import Purpose, Suite

FILE = json.loads((Path(__file__).parents[2] / "vectors" / "canonical" / "vectors.json").read_text())


def _field(value: Any) -> str | bytes | int:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


@pytest.mark.parametrize("vector", FILE["vectors"], ids=lambda vector: vector["name"])
def test_published_vectors(vector: dict[str, Any]) -> None:
    assert canonical_bytes(*map(_field, vector["fields"])) == bytes.fromhex(vector["bytes"])


def test_sequences_that_joining_would_confuse_differ() -> None:
    made = {canonical_bytes(*map(_field, fields)) for fields in FILE["distinct"]}
    assert len(made) == len(FILE["distinct"])


FIELDS = st.lists(st.binary(max_size=8), max_size=6)


@given(FIELDS, FIELDS)
def test_two_sequences_give_the_same_bytes_only_when_they_are_the_same(one: list[bytes], other: list[bytes]) -> None:
    assert (canonical_bytes(*one) == canonical_bytes(*other)) == (one == other)


def test_enums_are_their_values() -> None:
    assert canonical_bytes(Purpose.WEIGHTS, Suite.LARGE) == canonical_bytes("weights", 2)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        canonical_bytes(-1)


def test_a_field_longer_than_its_length_can_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical, "_MAX_FIELD_BYTES", 3)
    assert canonical_bytes(b"123") == b"\0\0\0\x03123"
    with pytest.raises(ValueError, match="at most"):
        canonical_bytes(b"1234")
