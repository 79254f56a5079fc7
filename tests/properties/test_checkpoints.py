"""Checkpoints and notes: what is signed is read back, and no other text is ever taken for it."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.log import FakeSigner
from modelkeep_platform.audit.checkpoint import Checkpoint, CheckpointError, key_hash, sign, verify

ORIGIN = "models.test/log"
SIGNER = FakeSigner()
KEY = SIGNER.public_key()

origins = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(
    lambda text: text.isprintable() and " " not in text and "+" not in text
)
checkpoints = st.builds(
    Checkpoint,
    origin=origins,
    size=st.integers(0, (1 << 63) - 1),
    root=st.binary(min_size=32, max_size=32),
)


@given(checkpoints)
def test_what_is_signed_is_read_back(checkpoint: Checkpoint) -> None:
    assert verify(sign(checkpoint, SIGNER), origin=checkpoint.origin, public_key=KEY) == checkpoint


@given(checkpoints, checkpoints)
def test_different_checkpoints_have_different_bodies(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.body() == other.body()) == (one == other)


@given(checkpoints, st.data())
@settings(max_examples=300)
def test_one_changed_character_is_refused_or_changes_nothing(checkpoint: Checkpoint, data: st.DataObject) -> None:
    note = sign(checkpoint, SIGNER)
    place = data.draw(st.integers(0, len(note) - 1))
    changed = note[:place] + data.draw(st.characters()) + note[place + 1 :]
    try:
        found = verify(changed, origin=checkpoint.origin, public_key=KEY)
    except CheckpointError:
        return
    # Base64 has spare bits at its end, and a final newline says nothing: what is read is what was signed all the same.
    assert found == checkpoint


@given(st.text(max_size=300) | st.text("—\n 0123456789AZaz+/=" + ORIGIN, max_size=200))
def test_no_text_is_a_checkpoint_by_chance(text: str) -> None:
    for note in (text, f"{ORIGIN}\n{text}", f"{ORIGIN}\n3\n{text}\n\n— {ORIGIN} {text}\n"):
        try:
            verify(note, origin=ORIGIN, public_key=KEY)
        except CheckpointError:
            continue
        raise AssertionError(note)


sizes = st.text("0123456789+-_.e \u0663\u00b2\ud800", max_size=30)


@given(sizes, st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()) | st.text(max_size=50))
def test_a_body_that_is_signed_but_is_no_checkpoint_is_refused(size: str, root: str) -> None:
    body = f"{ORIGIN}\n{size}\n{root}\n"
    try:
        signature = SIGNER.sign(body.encode())
    except UnicodeEncodeError:
        signature = bytes(64)
    blob = base64.b64encode(key_hash(ORIGIN, KEY) + signature).decode()
    try:
        found = verify(f"{body}\n— {ORIGIN} {blob}\n", origin=ORIGIN, public_key=KEY)
    except CheckpointError:
        return
    assert size == str(found.size)
    assert len(found.root) == 32


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=5))
def test_signatures_of_witnesses_are_passed_over(others: list[bytes]) -> None:
    checkpoint = Checkpoint(origin=ORIGIN, size=3, root=bytes(32))
    body, _, ours = sign(checkpoint, SIGNER).partition("\n\n")
    theirs = "".join(f"— witness.test {base64.b64encode(blob).decode()}\n" for blob in others)
    assert verify(f"{body}\n\n{theirs}{ours}", origin=ORIGIN, public_key=KEY) == checkpoint


def test_a_note_without_end_is_not_read() -> None:
    note = sign(Checkpoint(origin=ORIGIN, size=3, root=bytes(32)), SIGNER) + "— w AAAA\n" * 10_000
    with pytest.raises(CheckpointError) as caught:
        verify(note, origin=ORIGIN, public_key=KEY)
    assert caught.value.error_code == "checkpoint_invalid"
