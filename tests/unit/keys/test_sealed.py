"""Sealing: sizes, bounds and what may be given; the bytes themselves are the vectors' matter."""

import os
import pickle
import traceback
from collections.abc import Callable

import pytest

from modelkeep_platform.core.sealing import Suite
from modelkeep_platform.keys import sealed as module
from modelkeep_platform.keys.sealed import (
    HEADER_BYTES,
    KEY_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    SealedError,
    open_sealed,
    seal,
)

KEY = bytes(range(KEY_BYTES))
CHUNK = {Suite.SMALL: 16 * 1024, Suite.LARGE: 1024 * 1024}
SUITES = pytest.mark.parametrize("suite", list(Suite), ids=["suite 1", "suite 2"])


@SUITES
@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_every_length_around_a_border_comes_back(suite: Suite, chunks: int, more: int) -> None:
    plaintext = b"\xa5" * max(0, chunks * CHUNK[suite] + more)
    data = seal(KEY, b"c", plaintext, suite=suite)
    assert len(data) == HEADER_BYTES + len(plaintext) + TAG_BYTES * (len(plaintext) // CHUNK[suite] + 1)
    assert open_sealed(KEY, b"c", data) == plaintext


@SUITES
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=lambda kind: kind.__name__)
def test_any_buffer_is_sealed_and_opened(suite: Suite, kind: Callable[[bytes], bytes]) -> None:
    data = seal(KEY, b"c", kind(b"plain"), suite=suite)
    assert isinstance(data, bytes)
    assert open_sealed(KEY, b"c", kind(data)) == b"plain"


def test_a_buffer_of_wider_items_is_sealed_by_its_bytes() -> None:
    wide = memoryview(bytes(range(16))).cast("I")
    assert open_sealed(KEY, b"c", seal(KEY, b"c", wide, suite=Suite.SMALL)) == bytes(range(16))


def test_each_sealing_draws_a_salt_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom

    def watched(count: int) -> bytes:
        asked.append(count)
        return real(count)

    monkeypatch.setattr(os, "urandom", watched)
    once, again = (seal(KEY, b"c", b"same", suite=Suite.SMALL) for _ in range(2))
    assert asked == [SALT_BYTES, SALT_BYTES]
    assert once[:SALT_BYTES] != again[:SALT_BYTES]
    assert once[HEADER_BYTES:] != again[HEADER_BYTES:]


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_a_mistake_of_the_code(length: int) -> None:
    sealed = seal(KEY, b"c", b"x", suite=Suite.SMALL)
    with pytest.raises(ValueError, match="32 bytes"):
        seal(bytes(length), b"c", b"x", suite=Suite.SMALL)
    with pytest.raises(ValueError, match="32 bytes"):
        open_sealed(bytes(length), b"c", sealed)


@SUITES
def test_more_chunks_than_the_suite_allows_are_neither_sealed_nor_opened(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = seal(KEY, b"c", bytes(2 * CHUNK[suite]), suite=suite)
    known = module._SUITES[suite]
    few = module._Parameters(label=known.label, chunk_bytes=known.chunk_bytes, max_chunks=2)
    monkeypatch.setitem(module._SUITES, suite, few)
    assert open_sealed(KEY, b"c", seal(KEY, b"c", bytes(2 * CHUNK[suite] - 1), suite=suite))
    with pytest.raises(ValueError, match="too long"):
        seal(KEY, b"c", bytes(2 * CHUNK[suite]), suite=suite)
    with pytest.raises(SealedError):
        open_sealed(KEY, b"c", three)


def test_the_bounds_are_those_of_the_specification() -> None:
    assert {suite: known.max_chunks for suite, known in module._SUITES.items()} == {
        Suite.SMALL: 2**38,
        Suite.LARGE: 2**32,
    }


def test_the_suites_do_not_open_one_anothers_context() -> None:
    small = seal(KEY, b"c", b"x", suite=Suite.SMALL)
    large = seal(KEY, b"c", b"x", suite=Suite.LARGE)
    # The label tells them apart, so nobody says which it is; contexts name the suite, so neither passes for the other.
    assert open_sealed(KEY, b"c", small) == open_sealed(KEY, b"c", large) == b"x"
    with pytest.raises(SealedError):
        open_sealed(KEY, b"c", small[:SALT_BYTES] + large[SALT_BYTES:])


def test_a_refusal_says_nothing_of_key_or_plaintext() -> None:
    secret = b"the plaintext of a chunk that was opened before the bad one".ljust(CHUNK[Suite.SMALL], b".")
    place = b"where it belongs"
    data = bytearray(seal(KEY, place, secret + b"rest", suite=Suite.SMALL))
    data[-1] ^= 1
    with pytest.raises(SealedError) as raised:
        open_sealed(KEY, place, bytes(data))
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + repr(raised.value.details)
    for hidden in (KEY.hex(), repr(KEY), "the plaintext of", "where it belongs"):
        assert hidden not in shown


def test_what_a_key_derives_is_not_printed_and_not_pickled() -> None:
    derived = module._derive(KEY, b"c", bytes(SALT_BYTES), module._SUITES[Suite.SMALL])
    assert str(derived._base_nonce) not in repr(derived)
    with pytest.raises(TypeError):
        pickle.dumps(derived)
