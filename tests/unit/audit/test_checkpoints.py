"""Signed notes: what may stand in one, and every reason not to believe it."""

import base64

import pytest

from fakes.log import FakeSigner
from modelkeep_platform.audit.checkpoint import Checkpoint, CheckpointError, key_hash, sign, verify

ORIGIN = "modelkeep.test/log"
SIGNER = FakeSigner()


def noted(body: str, *, keyed: bytes | None = None, more: str = "") -> str:
    """Sign any text as if it were a checkpoint."""
    name = key_hash(ORIGIN, SIGNER.public_key()) if keyed is None else keyed
    blob = base64.b64encode(name + SIGNER.sign(body.encode())).decode()
    return f"{body}\n{more}— {ORIGIN} {blob}\n"


def body(*, size: str = "3", root: bytes = bytes(32)) -> str:
    return f"{ORIGIN}\n{size}\n{base64.b64encode(root).decode()}\n"


def read(note: str) -> Checkpoint:
    return verify(note, origin=ORIGIN, public_key=SIGNER.public_key())


def test_what_was_signed_is_read_back() -> None:
    made = Checkpoint(origin=ORIGIN, size=3, root=bytes(range(32)))
    assert read(sign(made, SIGNER)) == made
    assert read(noted(body())).size == 3


def test_signatures_of_others_are_passed_over() -> None:
    assert read(noted(body(), more="— another/log AAAA\n— witness BBBB\n")).size == 3


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "a\nb", "a\x00b"])
def test_an_origin_is_one_word(origin: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint(origin=origin, size=0, root=bytes(32))


REFUSED = {
    "too long": sign(Checkpoint(origin=ORIGIN, size=3, root=bytes(32)), SIGNER) + "— x y\n" * 20_000,
    "one line more": noted(body() + "an extension\n"),
    "one line less": noted(f"{ORIGIN}\n3\n"),
    "no signature": body() + "\n",
    "a key of another name": noted(body(), keyed=b"\x00\x00\x00\x00"),
    "a signature too short": noted(body()).rsplit(" ", 1)[0] + " AAAA\n",
    "a size that is no number": noted(body(size="three")),
    "a size with a zero before it": noted(body(size="03")),
    "a negative size": noted(body(size="-3")),
    "a size in other digits": noted(body(size="٣")),
    "a size of 70 bits": noted(body(size=str(2**70))),
    "a size of 64 bits": noted(body(size=str(2**63))),
    "a root too short": noted(body(root=bytes(31))),
    "a root that is no base64": noted(f"{ORIGIN}\n3\n*\n"),
}


@pytest.mark.parametrize("note", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_a_checkpoint_of_this_log_is_refused_even_when_it_is_signed(note: str) -> None:
    with pytest.raises(CheckpointError):
        read(note)


def test_a_text_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(CheckpointError):
        read(noted(body()).replace("\n3\n", "\n\udcff\n"))
