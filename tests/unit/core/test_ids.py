"""Identifiers and names."""

import base64
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.core import FakeEntropy
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.ids import PLATFORM, RequestIds, check_name, check_slug, new_object_id, new_tenant_id


def test_a_tenant_id_is_a_random_uuid_of_version_4() -> None:
    first, second = new_tenant_id(FakeEntropy(1)), new_tenant_id(FakeEntropy(2))
    assert first != second
    assert (uuid.UUID(first).version, uuid.UUID(first).variant) == (4, uuid.RFC_4122)
    assert str(uuid.UUID(first)) == first


def test_an_object_id_holds_128_bits_after_its_prefix() -> None:
    entropy = FakeEntropy()
    made = {new_object_id(entropy, "mdl") for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"mdl_[a-z2-7]{26}", item) for item in made)


NAMES = ["a", "0", "tumour-v1.2_x", "a" * 64, "1.0", "a--b", "a.."]


@pytest.mark.parametrize("name", NAMES)
def test_a_legal_name_is_returned(name: str) -> None:
    assert check_name(name, what="model") == name


BAD_NAMES = {
    "empty": "",
    "65 characters": "a" * 65,
    "upper case": "Model",
    "begins with a point": ".a",
    "begins with a hyphen": "-a",
    "begins with an underscore": "_a",
    "parent folder": "..",
    "slash": "a/b",
    "percent": "a%2fb",
    "space": "a b",
    "tilde": "acme~a",
    "trailing newline": "a\n",
    "nul": "a\0",
    "not ASCII digit": "a١",
    "full width": "ａ",
    "accent": "é",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_an_illegal_name_is_refused(name: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        check_name(name, what="model")
    assert caught.value.error_code == "invalid_name"
    assert caught.value.message.startswith(f"`{name[:80]}` is not a legal model name")


@pytest.mark.parametrize("slug", ["a", "acme-health", "a" * 40, "0"])
def test_a_legal_slug_is_returned(slug: str) -> None:
    assert check_slug(slug) == slug


@pytest.mark.parametrize("slug", ["", "a" * 41, "-a", "a-", "A", "a_b", "a.b", "a~b", "a\n", PLATFORM])
def test_an_illegal_or_reserved_slug_is_refused(slug: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        check_slug(slug)
    assert caught.value.error_code == "invalid_name"


class Given:
    """Gives the bytes it was made with, again and again."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def random_bytes(self, count: int) -> bytes:
        return (self._data * (count // len(self._data) + 1))[:count]


@given(st.binary(min_size=16, max_size=16))
def test_an_object_id_is_the_bits_in_base32(data: bytes) -> None:
    written = base64.b32encode(data).decode("ascii").rstrip("=").lower()
    assert new_object_id(Given(data), "mdl") == f"mdl_{written}"
    assert RequestIds(Given(data)).new() == f"req_{written}"


def test_request_ids_differ_also_when_new_random_bytes_are_drawn() -> None:
    ids = RequestIds(FakeEntropy())
    assert len({ids.new() for _ in range(1_000)}) == 1_000
