"""What a hostile server may answer, against the SDK's own readers: documented errors alone, and nothing that is not so.

The log's checkpoints and proofs are made here by the platform's own code, so the two sides are checked against each
other, too.
"""

import base64
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.log import FakeSigner
from modelkeep._core import merkle, safetensors
from modelkeep._core.checkpoint import Checkpoint, unbase64, verify
from modelkeep._core.decode import decode
from modelkeep.errors import CheckpointError, ConfigurationError, ProofError, ProtocolError
from modelkeep.resources.audit import _check_shown, _hashes
from modelkeep.types import AuditEntry
from modelkeep_platform.audit import checkpoint as server
from modelkeep_platform.datasets.readers.tensors import header_end, parse_header

ORIGIN = "models.test/log"
SIGNER = FakeSigner()
KEY = SIGNER.public_key()
EVERY = settings(max_examples=300, deadline=None)


# --- checkpoints --------------------------------------------------------------------------------------

checkpoints = st.builds(
    server.Checkpoint,
    origin=st.just(ORIGIN),
    size=st.integers(0, 10**18 - 1),
    root=st.binary(min_size=32, max_size=32),
)
texts = st.text(max_size=300) | st.text("—\n 0123456789AZaz+/=\ud800" + ORIGIN, max_size=200)


def seen(checkpoint: Checkpoint | server.Checkpoint) -> tuple[str, int, bytes]:
    return checkpoint.origin, checkpoint.size, checkpoint.root


@given(checkpoints)
def test_what_the_server_signs_the_client_reads(checkpoint: server.Checkpoint) -> None:
    note = server.sign(checkpoint, SIGNER)
    assert seen(verify(note, origin=ORIGIN, public_key=KEY)) == seen(checkpoint)


@EVERY
@given(checkpoints, st.data())
def test_one_changed_character_is_refused_or_changes_nothing(
    checkpoint: server.Checkpoint, data: st.DataObject
) -> None:
    note = server.sign(checkpoint, SIGNER)
    at = data.draw(st.integers(0, len(note) - 1))
    changed = note[:at] + data.draw(st.characters() | st.just("\ud800")) + note[at + 1 :]
    try:
        found = verify(changed, origin=ORIGIN, public_key=KEY)
    except CheckpointError:
        return
    # Base64 has spare bits at its end, and the note's last newline says nothing.
    assert seen(found) == seen(checkpoint)


@EVERY
@given(texts)
def test_no_text_is_a_checkpoint_by_chance(text: str) -> None:
    for note in (text, f"{ORIGIN}\n{text}", f"{ORIGIN}\n3\n{text}\n\n— {ORIGIN} {text}\n"):
        try:
            verify(note, origin=ORIGIN, public_key=KEY)
        except CheckpointError:
            continue
        raise AssertionError(note)


@EVERY
@given(st.text("0123456789+-_.e \u0663\u00b2", max_size=30), st.binary(max_size=40))
def test_a_body_that_is_signed_but_is_no_checkpoint_is_refused(size: str, root: bytes) -> None:
    body = f"{ORIGIN}\n{size}\n{base64.b64encode(root).decode()}\n"
    blob = base64.b64encode(server.key_hash(ORIGIN, KEY) + SIGNER.sign(body.encode())).decode()
    try:
        found = verify(f"{body}\n— {ORIGIN} {blob}\n", origin=ORIGIN, public_key=KEY)
    except CheckpointError:
        return
    assert (str(found.size), found.root, len(root)) == (size, root, 32)


@EVERY
@given(texts)
def test_strict_base64_is_one_spelling_or_refused(text: str) -> None:
    try:
        raw = unbase64(text)
    except CheckpointError:
        return
    assert len(base64.b64encode(raw)) == len(text)


# --- proofs -------------------------------------------------------------------------------------------

leaves = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def root_of(hashes: list[bytes]) -> bytes:
    """Return the root as RFC 6962, section 2.1, defines it."""
    if not hashes:
        return merkle.EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    half = split(len(hashes))
    return merkle.node_hash(root_of(hashes[:half]), root_of(hashes[half:]))


def split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def path(index: int, hashes: list[bytes]) -> list[bytes]:
    """Return the audit path of RFC 6962, section 2.1.1."""
    if len(hashes) == 1:
        return []
    half = split(len(hashes))
    if index < half:
        return [*path(index, hashes[:half]), root_of(hashes[half:])]
    return [*path(index - half, hashes[half:]), root_of(hashes[:half])]


def consistency(old: int, hashes: list[bytes], *, whole: bool = True) -> list[bytes]:
    """Return the consistency proof of RFC 6962, section 2.1.2."""
    if old == len(hashes):
        return [] if whole else [root_of(hashes)]
    half = split(len(hashes))
    if old <= half:
        return [*consistency(old, hashes[:half], whole=whole), root_of(hashes[half:])]
    return [*consistency(old - half, hashes[half:], whole=False), root_of(hashes[:half])]


def holds(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ProofError:
        return False
    return True


@EVERY
@given(leaves, st.data())
def test_an_inclusion_proof_shows_its_leaf_and_no_other(entries: list[bytes], data: st.DataObject) -> None:
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    index, size, root = data.draw(st.integers(0, len(hashes) - 1)), len(hashes), root_of(hashes)
    proof = path(index, hashes)
    assert holds(merkle.verify_inclusion, hashes[index], index, size, root, proof)
    assert not holds(merkle.verify_inclusion, merkle.leaf_hash(b"another leaf"), index, size, root, proof)
    other = data.draw(st.integers(-1, size + 1).filter(lambda at: at != index))
    if not 0 <= other < size or hashes[other] != hashes[index]:
        assert not holds(merkle.verify_inclusion, hashes[index], other, size, root, proof)
    for changed in spoilt(proof, data):
        assert not holds(merkle.verify_inclusion, hashes[index], index, size, root, changed)


@EVERY
@given(leaves, st.data())
def test_a_consistency_proof_shows_its_own_tree_and_no_other(entries: list[bytes], data: st.DataObject) -> None:
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    old, size, root = data.draw(st.integers(1, len(hashes))), len(hashes), root_of(hashes)
    before, proof = root_of(hashes[:old]), consistency(old, hashes)
    assert holds(merkle.verify_consistency, old, size, before, root, proof)
    forged = merkle.leaf_hash(b"another log")
    assert not holds(merkle.verify_consistency, old, size, forged, root, proof)
    assert not holds(merkle.verify_consistency, old, size, before, forged, proof)
    assert not holds(merkle.verify_consistency, size + 1, size, before, root, proof)
    for changed in spoilt(proof, data):
        assert not holds(merkle.verify_consistency, old, size, before, root, changed)


def spoilt(proof: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    """Return a proof with one bit turned, one hash left out, one too many, and one of another length."""
    found = [[*proof, bytes(32)], [bytes(31), *proof[1:]]]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        turned = bytearray(proof[at])
        turned[bit // 8] ^= 1 << bit % 8
        found += [[*proof[:at], bytes(turned), *proof[at + 1 :]], [*proof[:at], *proof[at + 1 :]]]
    return found


hashes_of_any_length = st.lists(st.binary(min_size=30, max_size=33) | st.just(bytes(32)), max_size=70)


@EVERY
@given(st.integers(-3, 2**70), st.integers(-3, 2**70), hashes_of_any_length)
def test_no_hashes_prove_anything_by_chance(first: int, second: int, proof: list[bytes]) -> None:
    root = hashlib.sha256(b"a root").digest()
    assert not holds(merkle.verify_inclusion, merkle.leaf_hash(b"x"), first, second, root, proof)
    if first != second:
        assert not holds(merkle.verify_consistency, first, second, merkle.leaf_hash(b"x"), root, proof)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@EVERY
@given(values | st.lists(st.text("AZaz09+/=", max_size=48), max_size=4))
def test_a_proof_is_a_list_of_base64_or_refused(value: object) -> None:
    try:
        found = _hashes({"hashes": value})
    except ProofError:
        return
    assert isinstance(value, list)
    assert [len(base64.b64encode(one)) for one in found] == [len(one) for one in value]


# --- entries ------------------------------------------------------------------------------------------

BODY: dict[str, Any] = {
    "id": "aud_1",
    "time": 1_700_000_000,
    "action": "model:read",
    "outcome": "denied",
    "actor": {"tenant": "acme", "kind": "user"},
    "resource": {"kind": "model", "id": "mdl_1"},
    "request_id": "req_1",
    "policies": ["no"],
    "facts": {"reason": "forbidden"},
}


ENTRY = AuditEntry(
    id="aud_1",
    index=3,
    time=1_700_000_000,
    action="model:read",
    outcome="denied",
    actor_tenant="acme",
    actor_kind="user",
    principal="usr_1",
    name="a name",
    kind="model",
    object_id="mdl_1",
    request_id="req_1",
    policies=["no"],
    facts={"reason": "forbidden", "name": "a name that is sealed in what is logged"},
    salt="",
    entry="",
    leaf_hash="",
)
COMPARED = {item.name for item in dataclasses.fields(AuditEntry)} - {
    *("principal", "name", "facts"),  # people's names are sealed in what is logged
    *("index", "entry", "salt", "leaf_hash"),  # where it stands, which the proof is about
}


def as_logged(entry: AuditEntry, body: bytes) -> bool:
    return holds(_check_shown, entry, body)


@EVERY
@given(st.sampled_from(sorted(COMPARED)), values)
def test_an_entry_shows_what_is_logged_or_is_refused(name: str, value: Any) -> None:
    body = json.dumps(BODY).encode()
    assert as_logged(ENTRY, body)
    shown = dataclasses.replace(ENTRY, **{name: value})
    assert as_logged(shown, body) == (value == getattr(ENTRY, name))


@EVERY
@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_are_an_entry_by_chance(body: bytes) -> None:
    assert not as_logged(ENTRY, body)


@EVERY
@given(values | st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(AuditEntry)]), values))
def test_an_answer_is_of_its_types_or_refused(value: object) -> None:
    try:
        found = decode(AuditEntry, value)
    except ProtocolError:
        return
    assert isinstance(found, AuditEntry)
    assert isinstance(value, dict)


# --- safetensors --------------------------------------------------------------------------------------

NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "float64": st.floats(allow_nan=False),
    "float32": st.floats(allow_nan=False, width=32),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "uint8": st.integers(0, 255),
}
CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8"}
tensors = st.dictionaries(
    st.text("abc._0", min_size=1, max_size=6),
    st.sampled_from(sorted(NUMBERS)).flatmap(
        lambda dtype: st.tuples(st.just(dtype), st.integers(1, 3).flatmap(lambda width: tables(NUMBERS[dtype], width)))
    ),
    min_size=1,
    max_size=4,
)


def tables(numbers: st.SearchStrategy[Any], width: int) -> st.SearchStrategy[list[list[Any]]]:
    return st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=3)


@EVERY
@given(tensors)
def test_what_the_client_writes_the_server_reads(given_tensors: dict[str, tuple[str, list[list[Any]]]]) -> None:
    dtypes = {name: dtype for name, (dtype, _) in given_tensors.items()}
    file = safetensors.write({name: rows for name, (_, rows) in given_tensors.items()}, dtypes=dtypes)
    end = header_end(file, len(file))
    read = {one.name: one for one in parse_header(file[8:end], len(file) - end)}
    assert set(read) == set(given_tensors)
    for name, (dtype, rows) in given_tensors.items():
        one = read[name]
        assert (one.dtype, list(one.shape)) == (CODES[dtype], [len(rows), len(rows[0])])
        stored = np.frombuffer(file[end + one.begin : end + one.end], dtype=np.dtype(dtype).newbyteorder("<"))
        assert stored.tolist() == [number for row in rows for number in row]


@EVERY
@given(st.sampled_from(sorted(NUMBERS)), values)
def test_values_that_do_not_fit_are_refused(dtype: str, value: object) -> None:
    try:
        file = safetensors.write({"x": value}, dtypes={"x": dtype})
    except ConfigurationError:
        return
    end = header_end(file, len(file))
    (one,) = parse_header(file[8:end], len(file) - end)
    assert one.dtype == CODES[dtype]
