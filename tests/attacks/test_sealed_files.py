"""What someone who can write blobs or database may try: the lines *Sealed files* of the design's list of attacks.

Each is refused with its code, changes nothing, and tells nothing of the plaintext. A minimum version for
key-encryption keys does not exist yet, nor do rotation and rewrapping: there is nothing to attack.
"""

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX, FakeClock, tenant_caller
from fakes.faulty_blobs import Crash, Fault
from fakes.sealed_room import BY, PART_BYTES, SealedRoom, memory_database, parts_of
from modelkeep_platform.core.errors import ConflictError, IntegrityError, ModelkeepError, UnavailableError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.context import dek_context, kek_context
from modelkeep_platform.keys.sealed import open_sealed, seal
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks
from modelkeep_platform.storage.tables.uploads import upload_parts
from modelkeep_platform.uploads import artifacts, rows

DATA = b"".join(f"row {number:04} of the secret weights; ".encode() for number in range(5))[:150]
OTHER = DATA[::-1]
FOLDER = f"{ACME}/mdl_1/1/weights"
BLOBS = [f"{FOLDER}/{name}" for name in ("part-0", "part-1", "part-2", "manifest")]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[SealedRoom]:
    """A room with one artifact of three parts."""
    for module in (artifacts, rows):
        monkeypatch.setattr(module, "MAX_PART_BYTES", PART_BYTES)
    database = memory_database()
    room = SealedRoom(database, FakeClock())
    room.upload(DATA)
    yield room
    database.close()


def refused(room: SealedRoom, *codes: str, read: Callable[[], object] | None = None) -> None:
    """Reading fails with one of `codes`, says nothing of the plaintext and changes nothing."""
    before = room.everything()
    room.restarted()  # nothing is remembered: what counts is what is stored
    with pytest.raises(ModelkeepError) as raised:
        (read or room.read)()
    assert raised.value.error_code in codes
    # What the error says, and what a log would show of where it came from.
    shown = "".join(traceback.format_exception_only(raised.value)) + repr(raised.value) + repr(raised.value.details)
    assert not any(word in shown for word in ("row 0", "secret", "wor", ACME, "mdl_1", "part-"))
    assert room.everything() == before


def key_refused(room: SealedRoom, *codes: str, owner: TenantId = ACME) -> None:
    """The object's key opens nothing and, which nothing else would show, seals nothing new."""
    place: dict[str, Any] = {"purpose": Purpose.GRAPH, "version": 1, "name": "graph", "suite": Suite.SMALL}
    refused(room, *codes, read=lambda: room.read(owner=owner))
    refused(room, *codes, read=lambda: room.keys.seal(owner, ObjectId("mdl_1"), b"new", **place))


def replaced(room: SealedRoom, key: str, data: bytes) -> None:
    room.memory.data[key] = data


# --- one sealed value -------------------------------------------------------------------------------

SIZES = {Suite.SMALL: 16 * 1024, Suite.LARGE: 1024 * 1024}
SUITES = pytest.mark.parametrize("suite", list(Suite), ids=["suite 1", "suite 2"])


class Value:
    """A sealed value of two full chunks and five bytes, opened through the key service."""

    def __init__(self, room: SealedRoom, suite: Suite) -> None:
        self.room, self.full = room, SIZES[suite] + 16
        self.place: dict[str, Any] = {"purpose": Purpose.GRAPH, "version": 1, "name": "graph", "suite": suite}
        self.sealed = self.seal(b"secret: " + bytes(2 * SIZES[suite] - 3))

    def seal(self, plaintext: bytes) -> bytes:
        return self.room.keys.seal(ACME, ObjectId("mdl_1"), plaintext, **self.place)

    def refused(self, data: bytes) -> None:
        before = self.room.everything()
        with pytest.raises(IntegrityError) as raised:
            self.room.keys.open(ACME, ObjectId("mdl_1"), data, **self.place)
        assert raised.value.error_code == "sealed_invalid"
        assert "secret" not in "".join(traceback.format_exception_only(raised.value))
        assert self.room.everything() == before

    def chunks(self) -> list[bytes]:
        body = self.sealed[56:]
        return [body[at : at + self.full] for at in range(0, len(body), self.full)]

    def refused_with(self, *chunks: bytes) -> None:
        self.refused(self.sealed[:56] + b"".join(chunks))


@SUITES
def test_a_value_cut_at_or_beside_any_border_is_refused(room: SealedRoom, suite: Suite) -> None:
    value = Value(room, suite)
    borders = [0, 24, 56, 56 + value.full, 56 + 2 * value.full, len(value.sealed)]
    for length in sorted({border + by for border in borders for by in (-17, -16, -1, 0, 1, 16, 17)}):
        if 0 <= length < len(value.sealed):
            value.refused(value.sealed[:length])


@SUITES
def test_reordered_repeated_and_dropped_chunks_are_refused(room: SealedRoom, suite: Suite) -> None:
    value = Value(room, suite)
    first, second, last = value.chunks()
    for order in ([second, first, last], [first, first, last], [first, last], [second, last], [last], [last, first]):
        value.refused_with(*order)
    for order in ([first, second, second, last], [first, second, last, last], [first, second, last, first], []):
        value.refused_with(*order)


@SUITES
def test_trailing_bytes_are_refused(room: SealedRoom, suite: Suite) -> None:
    value = Value(room, suite)
    for length in (1, 15, 16, 17, 56, value.full - 21, value.full, value.full + 16):
        value.refused(value.sealed + bytes(length))
    value.refused(value.sealed + value.sealed)
    value.refused(bytes(1) + value.sealed)


@SUITES
def test_another_files_header_is_refused_also_under_the_same_context(room: SealedRoom, suite: Suite) -> None:
    value = Value(room, suite)
    other = value.seal(b"another")
    for header in (other[:56], other[:24] + value.sealed[24:56], value.sealed[:24] + other[24:56], bytes(56)):
        value.refused(header + value.sealed[56:])
    value.refused(value.sealed[:56] + other[56:])


# --- an artifact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", BLOBS, ids=lambda key: key.rpartition("/")[2])
def test_one_flipped_bit_anywhere_is_refused(room: SealedRoom, key: str) -> None:
    whole = room.memory.data[key]
    for at in range(len(whole)):
        replaced(room, key, whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        refused(room, "sealed_invalid")
    replaced(room, key, whole)
    assert room.read() == DATA


@pytest.mark.parametrize("key", BLOBS, ids=lambda key: key.rpartition("/")[2])
def test_a_blob_cut_anywhere_is_refused(room: SealedRoom, key: str) -> None:
    whole = room.memory.data[key]
    for length in range(len(whole)):
        replaced(room, key, whole[:length])
        refused(room, "sealed_invalid")


@pytest.mark.parametrize("key", BLOBS, ids=lambda key: key.rpartition("/")[2])
def test_a_missing_blob_is_refused_as_missing(room: SealedRoom, key: str) -> None:
    del room.memory.data[key]
    refused(room, "blob_missing")


ORDERS = [[1, 0, 2], [0, 2, 1], [2, 1, 0], [0, 0, 2], [0, 1, 1], [1, 1, 1], [2, 0, 1]]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_parts_swapped_or_repeated_are_refused(room: SealedRoom, order: list[int]) -> None:
    parts = [room.memory.data[key] for key in BLOBS[:3]]
    for key, number in zip(BLOBS, order, strict=False):
        replaced(room, key, parts[number])
    refused(room, "sealed_invalid")


def test_a_part_more_than_the_manifest_names_is_never_read(room: SealedRoom) -> None:
    replaced(room, f"{FOLDER}/part-3", room.memory.data[BLOBS[0]])
    assert room.read() == DATA


def test_what_was_yielded_before_a_refusal_is_authentic(room: SealedRoom) -> None:
    replaced(room, BLOBS[2], room.memory.data[BLOBS[1]])
    stream = room.artifacts.read(ACME, ObjectId("mdl_1"), 1, Purpose.WEIGHTS)
    assert [next(stream), next(stream)] == parts_of(DATA)[:2]
    with pytest.raises(IntegrityError):
        next(stream)


def _another(room: SealedRoom, which: str) -> str:
    """Make another artifact of the same shape; return its folder."""
    if which == "version":
        room.upload(OTHER, version=2, create_key=False)
        return f"{ACME}/mdl_1/2/weights"
    if which == "object":
        room.upload(OTHER, object_id="mdl_2")
        return f"{ACME}/mdl_2/1/weights"
    if which == "purpose":
        chunks = parts_of(OTHER)
        room.artifacts.write(ACME, ObjectId("mdl_1"), 1, Purpose.CHECKPOINT, chunks)
        return f"{ACME}/mdl_1/1/checkpoint"
    room.key_for("mdl_1", GLOBEX)
    room.artifacts.write(GLOBEX, ObjectId("mdl_1"), 1, Purpose.WEIGHTS, parts_of(OTHER))
    return f"{GLOBEX}/mdl_1/1/weights"


@pytest.mark.parametrize("which", ["version", "object", "purpose", "tenant"])
@pytest.mark.parametrize("names", [["part-0"], ["part-2"], ["manifest"], ["part-0", "part-1", "part-2", "manifest"]])
def test_what_belongs_to_another_place_is_refused(room: SealedRoom, which: str, names: list[str]) -> None:
    folder = _another(room, which)
    for name in names:
        replaced(room, f"{FOLDER}/{name}", room.memory.data[f"{folder}/{name}"])
    refused(room, "sealed_invalid")


def test_an_earlier_part_of_the_very_same_place_is_not_the_one_the_manifest_names(room: SealedRoom) -> None:
    # The one thing a context cannot tell apart: two sealings of one place. The manifest's digest can.
    earlier = room.keys.seal(
        ACME, ObjectId("mdl_1"), OTHER[:64], purpose=Purpose.WEIGHTS, version=1, name="part-0", suite=Suite.LARGE
    )
    replaced(room, BLOBS[0], earlier)
    refused(room, "part_mismatch")


# --- keys -------------------------------------------------------------------------------------------


def _update(room: SealedRoom, table: sa.Table, where: dict[str, object], **values: object) -> None:
    with room.database.platform() as tx:
        tx.execute(sa.update(table).where(*(table.c[name] == value for name, value in where.items())).values(**values))


def _wrapped(room: SealedRoom, table: sa.Table, **where: object) -> object:
    return next(row["wrapped"] for row in room.rows(table) if where.items() <= row.items())


def test_a_data_key_moved_to_another_object_is_refused(room: SealedRoom) -> None:
    room.key_for("mdl_2")
    _update(room, wrapped_deks, {"object_id": "mdl_1"}, wrapped=_wrapped(room, wrapped_deks, object_id="mdl_2"))
    key_refused(room, "sealed_invalid")


def test_a_data_key_moved_to_another_tenant_is_refused(room: SealedRoom) -> None:
    room.key_for("mdl_1", GLOBEX)
    stolen = _wrapped(room, wrapped_deks, tenant_id=ACME)
    _update(room, wrapped_deks, {"tenant_id": GLOBEX}, wrapped=stolen)
    for name, data in list(room.memory.data.items()):
        replaced(room, name.replace(ACME, GLOBEX), data)
    key_refused(room, "sealed_invalid", owner=GLOBEX)


def test_a_row_given_to_another_tenant_is_refused(room: SealedRoom) -> None:
    _update(room, wrapped_deks, {"tenant_id": ACME}, tenant_id=GLOBEX)
    for name, data in list(room.memory.data.items()):
        replaced(room, name.replace(ACME, GLOBEX), data)
    key_refused(room, "sealed_invalid", owner=GLOBEX)
    key_refused(room, "key_missing")


def _second_kek(room: SealedRoom, tenant: TenantId = ACME) -> SecretBytes:
    kek = SecretBytes(b"\x07" * 32)
    wrapped = room.root.wrap(kek, kek_context(tenant, version=2, root_id=room.root.id))
    with room.database.tenant(tenant, by=BY) as tx:
        tx.insert(wrapped_keks, version=2, root_id=room.root.id, wrapped=wrapped, created_at=1)
    return kek


@pytest.mark.parametrize("claimed", [1, 3, 2**31 - 1])
def test_a_data_key_that_claims_another_version_of_its_wrapping_key_is_refused(room: SealedRoom, claimed: int) -> None:
    kek = _second_kek(room)
    first = room.root.unwrap(
        bytes(_wrapped(room, wrapped_keks, tenant_id=ACME, version=1)),  # type: ignore[call-overload]
        kek_context(ACME, version=1, root_id=room.root.id),
    )
    dek = open_sealed(
        first.reveal(),
        dek_context(ACME, ObjectId("mdl_1"), kek_version=1),
        bytes(_wrapped(room, wrapped_deks, object_id="mdl_1")),  # type: ignore[call-overload]
    )
    rewrapped = seal(kek.reveal(), dek_context(ACME, ObjectId("mdl_1"), kek_version=2), dek, suite=Suite.SMALL)
    _update(room, wrapped_deks, {"object_id": "mdl_1"}, wrapped=rewrapped, kek_version=2)
    room.restarted()
    assert room.read() == DATA
    _update(room, wrapped_deks, {"object_id": "mdl_1"}, kek_version=claimed)
    key_refused(room, "sealed_invalid", "key_missing")


def test_an_old_wrapping_key_in_the_place_of_a_new_one_is_refused(room: SealedRoom) -> None:
    _second_kek(room)
    old = _wrapped(room, wrapped_keks, tenant_id=ACME, version=1)
    _update(room, wrapped_keks, {"tenant_id": ACME, "version": 2}, wrapped=old)
    before = room.everything()
    with pytest.raises(IntegrityError):
        room.key_for("mdl_9")  # nothing new is wrapped under it
    assert room.everything() == before


def test_another_tenants_wrapping_key_is_refused(room: SealedRoom) -> None:
    _update(room, wrapped_keks, {"tenant_id": ACME}, wrapped=_wrapped(room, wrapped_keks, tenant_id=GLOBEX))
    key_refused(room, "integrity")


def test_a_wrapping_key_that_names_another_root_is_refused(room: SealedRoom) -> None:
    _update(room, wrapped_keks, {"tenant_id": ACME}, root_id="another-root")
    key_refused(room, "root_key_other")


@pytest.mark.parametrize("table", [wrapped_keks, wrapped_deks], ids=lambda table: table.name)
@pytest.mark.parametrize("wrapped", [b"", bytes(32), bytes(104)], ids=["empty", "a bare key", "zeros"])
def test_a_key_of_the_attackers_own_making_is_refused(room: SealedRoom, table: sa.Table, wrapped: bytes) -> None:
    _update(room, table, {"tenant_id": ACME}, wrapped=wrapped)
    key_refused(room, "sealed_invalid", "integrity")


def test_after_a_shred_no_copy_of_the_sealed_bytes_opens(room: SealedRoom) -> None:
    copy = dict(room.memory.data)
    room.forget()
    room.artifacts.delete(ACME, ObjectId("mdl_1"))
    assert room.memory.data == {}
    room.memory.data |= copy
    refused(room, "key_missing")
    room.key_for("mdl_1")  # made again under the same id, which the platform never does
    refused(room, "sealed_invalid")


def test_bytes_that_a_crash_left_after_a_shred_do_not_open(room: SealedRoom) -> None:
    room.forget()
    room.blobs.order("delete", Fault.BEFORE)
    with pytest.raises(Crash):
        room.artifacts.delete(ACME, ObjectId("mdl_1"))
    assert len(room.memory.data) == 4
    refused(room, "key_missing")


# --- disks and processes that fail ------------------------------------------------------------------

WRITES = pytest.mark.parametrize("write", range(4), ids=["part-0", "part-1", "part-2", "manifest"])


def _finish(room: SealedRoom, upload_id: str, data: bytes) -> None:
    """Go on as a client does: ask what arrived, send the rest, complete."""
    upload = room.uploads.status(tenant_caller(), upload_id)
    for number in set(range(upload.parts)) - set(upload.received):
        room.send(upload, number, parts_of(data)[number])
    room.complete(upload)


@WRITES
@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.TORN, Fault.AFTER], ids=["before", "torn", "after"])
def test_a_crash_at_any_write_of_an_upload_loses_and_shows_nothing(room: SealedRoom, write: int, fault: Fault) -> None:
    upload = room.begin(OTHER, object_id="mdl_2")
    room.blobs.order("write", fault, after=write)
    with pytest.raises(Crash):
        _finish(room, upload.id, OTHER)
    room.restarted()
    after = room.uploads.status(tenant_caller(), upload.id)
    assert (after.state, after.received) == ("open", tuple(range(min(write, 3))))
    _finish(room, upload.id, OTHER)
    assert room.read("mdl_2") == OTHER
    assert room.read() == DATA


@WRITES
@pytest.mark.parametrize("fault", [Fault.EIO, Fault.FULL, Fault.UNSYNCED], ids=["EIO", "disk full", "not synced"])
def test_a_write_that_fails_is_refused_and_can_be_repeated(room: SealedRoom, write: int, fault: Fault) -> None:
    upload = room.begin(OTHER, object_id="mdl_2")
    room.blobs.order("write", fault, after=write)
    rows = room.rows(upload_parts)
    with pytest.raises(UnavailableError) as raised:
        _finish(room, upload.id, OTHER)
    assert raised.value.error_code == "storage_failed"
    assert len(room.rows(upload_parts)) == len(rows) + min(write, 3)
    assert room.uploads.status(tenant_caller(), upload.id).state == "open"
    _finish(room, upload.id, OTHER)
    assert room.read("mdl_2") == OTHER


@pytest.mark.parametrize("read", range(4), ids=["manifest", "part-0", "part-1", "part-2"])
@pytest.mark.parametrize(("fault", "code"), [(Fault.EIO, "storage_failed"), (Fault.SHORT, "sealed_invalid")])
def test_a_read_that_fails_or_is_short_is_refused(room: SealedRoom, read: int, fault: Fault, code: str) -> None:
    room.blobs.order("get", fault, after=read)
    refused(room, code)
    assert room.read() == DATA


def test_a_short_read_while_an_upload_is_checked_makes_nothing_visible(room: SealedRoom) -> None:
    upload = room.begin(OTHER, object_id="mdl_2")
    for number, part in enumerate(parts_of(OTHER)):
        room.send(upload, number, part)
    room.blobs.order("get", Fault.SHORT, after=1)
    refused(room, "sealed_invalid", read=lambda: room.uploads.check_complete(tenant_caller(), upload.id))
    assert f"{ACME}/mdl_2/1/weights/manifest" not in room.memory.data
    room.complete(upload)
    assert room.read("mdl_2") == OTHER


def test_a_part_that_rots_before_completion_is_found(room: SealedRoom) -> None:
    upload = room.begin(OTHER, object_id="mdl_2")
    for number, part in enumerate(parts_of(OTHER)):
        room.send(upload, number, part)
    key = f"{ACME}/mdl_2/1/weights/part-1"
    replaced(room, key, room.memory.data[key][:-1])
    refused(room, "sealed_invalid", read=lambda: room.uploads.check_complete(tenant_caller(), upload.id))


@pytest.mark.parametrize("delete", range(3))
@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER, Fault.EIO], ids=["before", "after", "EIO"])
def test_what_a_crash_left_of_a_given_up_upload_is_deleted_later(room: SealedRoom, delete: int, fault: Fault) -> None:
    kept = dict(room.memory.data)
    upload = room.begin(OTHER, object_id="mdl_2")
    for number, part in enumerate(parts_of(OTHER)):
        room.send(upload, number, part)
    room.blobs.order("delete", fault, after=delete)
    with pytest.raises((Crash, UnavailableError)):
        room.uploads.abort(tenant_caller(), upload.id)
    room.restarted()
    assert room.uploads.status(tenant_caller(), upload.id).state == "aborted"
    with pytest.raises(ConflictError) as raised:
        room.send(upload, 0, parts_of(OTHER)[0])
    assert raised.value.error_code == "upload_ended"
    assert room.endings.expire() == 1
    assert room.memory.data == kept
    assert room.endings.expire() == 0
