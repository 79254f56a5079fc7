"""The sealed format over any plaintext, context and change; chunks are made small, so that there are many."""

from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelkeep_platform.core.sealing import Suite
from modelkeep_platform.keys import sealed as module
from modelkeep_platform.keys.sealed import HEADER_BYTES, KEY_BYTES, TAG_BYTES, SealedError, open_sealed, seal

CHUNK = {Suite.SMALL: 8, Suite.LARGE: 24}


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for suite, size in CHUNK.items():
            known = module._SUITES[suite]
            small = module._Parameters(label=known.label, chunk_bytes=size, max_chunks=known.max_chunks)
            patch.setitem(module._SUITES, suite, small)
        yield


KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
CONTEXTS = st.binary(max_size=40)
PLAINTEXTS = st.binary(max_size=100)
SUITES = st.sampled_from(list(Suite))
FEW = settings(max_examples=150, deadline=None)


@FEW
@given(KEYS, CONTEXTS, PLAINTEXTS, SUITES)
def test_what_is_sealed_opens_and_has_the_length_of_the_formula(
    key: bytes, context: bytes, plaintext: bytes, suite: Suite
) -> None:
    data = seal(key, context, plaintext, suite=suite)
    chunks = len(plaintext) // CHUNK[suite] + 1
    assert len(data) == HEADER_BYTES + len(plaintext) + TAG_BYTES * chunks
    assert open_sealed(key, context, data) == plaintext


@FEW
@given(KEYS, KEYS, CONTEXTS, CONTEXTS, SUITES)
def test_another_key_or_context_opens_nothing(
    key: bytes, other_key: bytes, context: bytes, other: bytes, suite: Suite
) -> None:
    assume((key, context) != (other_key, other))
    data = seal(key, context, b"plain", suite=suite)
    with pytest.raises(SealedError):
        open_sealed(other_key, other, data)


@FEW
@given(PLAINTEXTS, SUITES, st.data())
def test_any_other_bytes_are_refused(plaintext: bytes, suite: Suite, data: st.DataObject) -> None:
    sealed = seal(bytes(32), b"c", plaintext, suite=suite)
    start = data.draw(st.integers(0, len(sealed)))
    stop = data.draw(st.integers(start, len(sealed)))
    changed = sealed[:start] + data.draw(st.binary(max_size=60)) + sealed[stop:]
    assume(changed != sealed)
    with pytest.raises(SealedError):
        open_sealed(bytes(32), b"c", changed)


@FEW
@given(PLAINTEXTS, PLAINTEXTS, SUITES, st.data())
def test_no_arrangement_of_the_pieces_of_two_files_opens_but_the_files(
    one: bytes, other: bytes, suite: Suite, data: st.DataObject
) -> None:
    files = [seal(bytes(32), b"c", plaintext, suite=suite) for plaintext in (one, other)]
    full = CHUNK[suite] + TAG_BYTES
    headers = [file[:HEADER_BYTES] for file in files]
    chunks = [file[at : at + full] for file in files for at in range(HEADER_BYTES, len(file), full)]
    built = data.draw(st.sampled_from(headers)) + b"".join(data.draw(st.lists(st.sampled_from(chunks), max_size=12)))
    if built in files:
        assert open_sealed(bytes(32), b"c", built) in (one, other)
    else:
        with pytest.raises(SealedError):
            open_sealed(bytes(32), b"c", built)


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(SealedError):
        open_sealed(bytes(32), b"c", data)
