"""What someone who can write blobs or database may try: the lines *Sealed files* of the design's list of attacks.

Each is refused with its code, changes nothing, and tells nothing of the plaintext. A minimum version for
key-encryption keys does not exist yet, nor do rotation and rewrapping: there is nothing to attack. At the end the same
is done behind the back of a running platform: calls answer the documented code, the log says that they failed, and
what was not touched still opens.
"""

import base64
import hashlib
import itertools
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX, FakeClock, tenant_caller
from fakes.faulty_blobs import Crash, Fault
from fakes.sealed_room import BY, PART_BYTES, SealedRoom, memory_database, parts_of
from isolation.routes import code_of
from modelkeep_platform.core.errors import ConflictError, IntegrityError, ModelkeepError, UnavailableError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.context import dek_context, kek_context
from modelkeep_platform.keys.sealed import open_sealed, seal
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks
from modelkeep_platform.storage.tables.models import model_versions
from modelkeep_platform.storage.tables.uploads import upload_parts
from modelkeep_platform.uploads import artifacts, rows
from services.evidence import Evidence
from services.house import GRAPH, WEIGHTS, House, Tenant

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


# --- behind a running platform ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A model version: its name, the ids of its rows, and the folder of its sealed weights."""

    name: str
    tenant: str
    model: str
    folder: Path


class Vault:
    """A platform whose disk and database are within reach."""

    def __init__(self, house: House) -> None:
        self.house, self.numbers = house, itertools.count()

    def store(self, tenant: Tenant, name: str = "") -> Stored:
        """Upload a model, or a second version of one."""
        name = name or f"model-{next(self.numbers)}"
        made = tenant.clients["developer"].models.upload(name, graph=GRAPH, weights=WEIGHTS)
        (folder,) = (self.house.made.data / "blobs").glob(f"*/{made.model_id}/{made.version}/weights")
        return Stored(name, folder.parents[2].name, made.model_id, folder)

    def change(self, table: sa.Table, stored: Stored, **values: object) -> None:
        """Change the rows of a model behind every service's back, and forget what was opened."""
        ids = {wrapped_deks: wrapped_deks.c.object_id, model_versions: model_versions.c.model_id}
        with self.house.server.platform.ground.database.platform() as tx:
            tx.execute(sa.update(table).where(ids[table] == stored.model).values(**values))
            tx.bump_epoch()
        self.house.server.platform.ground.epoch.refresh()

    def value(self, column: sa.Column[Any], stored: Stored) -> Any:
        """Return a column of a model's newest row."""
        ids = {"wrapped_deks": wrapped_deks.c.object_id, "model_versions": model_versions.c.model_id}
        where = ids[column.table.name] == stored.model
        with self.house.server.platform.ground.database.platform(read_only=True) as tx:
            return tx.all(sa.select(column).where(where))[-1][column.name]


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """A platform with small parts, so that a small model has several."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (artifacts, rows):
            patch.setattr(module, "MAX_PART_BYTES", PART_BYTES)
        house = House(
            Path(tmp_path_factory.mktemp("sealed")),
            tenant_refusals_per_minute=1_000_000,
            principal_refusals_per_minute=1_000_000,
        )
        yield Vault(house)
        house.close()


@pytest.fixture(scope="module")
def evidence(vault: Vault) -> Evidence:
    return Evidence(vault.house)


@pytest.fixture(scope="module")
def developer(vault: Vault) -> Iterator[httpx.Client]:
    with vault.house.http(vault.house.acme.clients["developer"]) as http:
        yield http


@pytest.fixture(scope="module")
def whole(vault: Vault) -> Stored:
    """A model that nobody touches."""
    return vault.store(vault.house.acme)


def flipped(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def moved(source: Stored, target: Stored) -> None:
    for path in source.folder.iterdir():
        shutil.copy(path, target.folder / path.name)


TAMPERINGS: dict[str, tuple[Callable[[Vault, Stored], object], str]] = {
    "one-bit-of-a-part": (lambda _, it: flipped(it.folder / "part-0"), "sealed_invalid"),
    "one-bit-of-the-manifest": (lambda _, it: flipped(it.folder / "manifest"), "sealed_invalid"),
    "part-cut": (lambda _, it: cut(it.folder / "part-0", 70), "sealed_invalid"),
    "part-emptied": (lambda _, it: cut(it.folder / "part-0", 0), "sealed_invalid"),
    "manifest-cut": (lambda _, it: cut(it.folder / "manifest", 80), "sealed_invalid"),
    "part-gone": (lambda _, it: (it.folder / "part-0").unlink(), "blob_missing"),
    "manifest-gone": (lambda _, it: (it.folder / "manifest").unlink(), "blob_missing"),
    "another-part": (lambda _, it: shutil.copy(it.folder / "part-1", it.folder / "part-0"), "sealed_invalid"),
    "another-version": (lambda vault, it: moved(vault.store(vault.house.acme, it.name), it), "sealed_invalid"),
    "another-object": (lambda vault, it: moved(vault.store(vault.house.acme), it), "sealed_invalid"),
    "another-tenants": (lambda vault, it: moved(vault.store(vault.house.globex), it), "sealed_invalid"),
    "another-objects-key": (lambda vault, it: _keyed(vault, it, vault.store(vault.house.acme)), "sealed_invalid"),
    "another-tenants-key": (lambda vault, it: _keyed(vault, it, vault.store(vault.house.globex)), "sealed_invalid"),
    "key-of-zeros": (lambda vault, it: vault.change(wrapped_deks, it, wrapped=bytes(104)), "sealed_invalid"),
    "key-of-another-version": (lambda vault, it: vault.change(wrapped_deks, it, kek_version=2), "key_missing"),
    "another-objects-graph": (lambda vault, it: _drawn(vault, it, vault.store(vault.house.acme)), "sealed_invalid"),
    "another-tenants-graph": (lambda vault, it: _drawn(vault, it, vault.store(vault.house.globex)), "sealed_invalid"),
    "another-graph-named": (
        lambda vault, it: vault.change(model_versions, it, graph_sha256="0" * 64),
        "graph_mismatch",
    ),
}


def _keyed(vault: Vault, it: Stored, other: Stored) -> None:
    vault.change(wrapped_deks, it, wrapped=vault.value(wrapped_deks.c.wrapped, other))


def _drawn(vault: Vault, it: Stored, other: Stored) -> None:
    vault.change(model_versions, it, graph_sealed=vault.value(model_versions.c.graph_sealed, other))


@pytest.mark.parametrize(("tamper", "code"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_download_of_what_was_changed_is_refused_and_recorded_as_failed(
    vault: Vault,
    evidence: Evidence,
    developer: httpx.Client,
    whole: Stored,
    tamper: Callable[[Vault, Stored], object],
    code: str,
) -> None:
    it = vault.store(vault.house.acme)
    tamper(vault, it)
    with evidence.nothing_changes():
        answer = developer.get(f"/v1/models/{it.name}/versions/1/weights")
    assert (answer.status_code, code_of(answer)) == (500, code), answer.text
    assert evidence.recorded(answer) == [("acme", "failed", code)]
    assert not any(word in answer.text for word in (it.tenant, it.model, "part-", "manifest", str(it.folder)))
    assert developer.get(f"/v1/models/{whole.name}/versions/1/weights").content == WEIGHTS
    assert developer.delete(f"/v1/models/{it.name}/versions/1").status_code == 204, "it can still be given up"


def test_the_owner_hears_of_a_grantee_that_met_changed_bytes(vault: Vault, evidence: Evidence) -> None:
    it = vault.store(vault.house.acme)
    vault.house.acme.admin.grants.create("model", it.name, grantee="globex", actions=["model:export"])
    flipped(it.folder / "part-0")
    with vault.house.http(vault.house.globex.clients["developer"]) as http:
        answer = http.get(f"/v1/models/acme~{it.name}/versions/1/weights")
    assert (answer.status_code, code_of(answer)) == (500, "sealed_invalid")
    assert sorted(evidence.recorded(answer)) == [
        ("acme", "failed", "sealed_invalid"),
        ("globex", "failed", "sealed_invalid"),
    ]


def test_a_download_that_finds_a_later_part_changed_breaks_off_and_a_second_entry_says_so(
    vault: Vault, evidence: Evidence, developer: httpx.Client
) -> None:
    it = vault.store(vault.house.acme)
    flipped(it.folder / "part-1")
    received = b""
    with (
        developer.stream("GET", f"/v1/models/{it.name}/versions/1/weights") as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        for chunk in answer.iter_raw():
            received += chunk
    assert received == WEIGHTS[:PART_BYTES]
    assert [(one.outcome, one.facts.get("error")) for one in evidence.entries(answer.headers["x-request-id"])] == [
        ("done", None),
        ("failed", "sealed_invalid"),
    ]


def test_nothing_is_predicted_with_what_was_changed(
    vault: Vault, evidence: Evidence, developer: httpx.Client, whole: Stored
) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    weights, graph = vault.store(vault.house.acme), vault.store(vault.house.acme)
    flipped(weights.folder / "part-1")
    _drawn(vault, graph, whole)
    for it in (weights, graph):
        with evidence.nothing_changes():
            answer = developer.post(f"/v2/models/{it.name}/infer", json=body)
        assert (answer.status_code, code_of(answer)) == (500, "sealed_invalid"), answer.text
        assert evidence.recorded(answer) == [("acme", "failed", "sealed_invalid")]
    answer = developer.post(f"/v2/models/{whole.name}/infer", json=body)
    assert answer.json()["outputs"][0]["data"] == [3.5, 6.5]


def test_a_part_that_was_changed_before_completion_completes_nothing(
    vault: Vault, evidence: Evidence, developer: httpx.Client
) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    body = {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": digest}
    begun = developer.post("/v1/models/half/versions", json=body).json()
    upload = f"/v1/uploads/{begun['upload']['id']}"
    for number, part in enumerate(parts_of(WEIGHTS)):
        sent = base64.b64encode(hashlib.sha256(part).digest()).decode()
        headers = {"content-digest": f"sha-256=:{sent}:"}
        assert developer.put(f"{upload}/parts/{number}", content=part, headers=headers).status_code == 200
    (path,) = (vault.house.made.data / "blobs").glob(f"*/{begun['model_id']}/1/weights/part-1")
    kept = path.read_bytes()
    flipped(path)
    with evidence.nothing_changes():
        answer = developer.post(f"{upload}/complete")
    assert (answer.status_code, code_of(answer)) == (500, "sealed_invalid")
    assert evidence.recorded(answer) == [("acme", "failed", "sealed_invalid")]
    assert developer.get("/v1/models/half").status_code == 404
    path.write_bytes(kept)
    assert developer.post(f"{upload}/complete").status_code == 200
    assert developer.get("/v1/models/half/versions/1/weights").content == WEIGHTS
