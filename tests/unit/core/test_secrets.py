"""Secret bytes do not show."""

import copy
import pickle

import pytest

from modelkeep_platform.core.secrets import SecretBytes

SECRET = SecretBytes(b"correct horse")


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r:>5}".format], ids=["repr", "str", "format", "spec"])
def test_a_secret_shows_its_length_alone(show: object) -> None:
    assert callable(show)
    text = show(SECRET)
    assert text == "SecretBytes(<13 bytes>)"


def test_a_secret_inside_an_exception_or_container_does_not_show() -> None:
    assert "horse" not in repr({"key": [SECRET]})
    assert "horse" not in str(ValueError(SECRET))


def test_reveal_returns_it() -> None:
    assert SECRET.reveal() == b"correct horse"
    assert len(SECRET) == 13


def test_a_mutable_buffer_is_copied() -> None:
    buffer = bytearray(b"abc")
    secret = SecretBytes(bytes(buffer))
    buffer[0] = 0
    assert secret.reveal() == b"abc"


def test_equality_is_by_value_and_never_with_bare_bytes() -> None:
    assert SecretBytes(b"a") == SecretBytes(b"a")
    assert SecretBytes(b"a") != SecretBytes(b"b")
    assert SecretBytes(b"a") != b"a"


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_a_secret_is_not_pickled_or_copied(copying: object) -> None:
    assert callable(copying)
    with pytest.raises(TypeError, match="cannot be pickled"):
        copying(SECRET)


def test_a_secret_is_no_dictionary_key() -> None:
    with pytest.raises(TypeError):
        hash(SECRET)


def test_a_secret_takes_no_attributes() -> None:
    with pytest.raises(AttributeError):
        SECRET.note = "x"  # type: ignore[attr-defined]
