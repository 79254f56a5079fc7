"""The key tree: who may make a key, what opens, what is remembered, what a destroyed key leaves."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError

from fakes.core import ACME, GLOBEX, FakeEntropy
from fakes.root_keys import FakeRootKey
from fakes.sealed_room import BY, SealedRoom
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys import service as module
from modelkeep_platform.keys.context import kek_context
from modelkeep_platform.keys.service import KeyService
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks

ONE, TWO = ObjectId("mdl_1"), ObjectId("mdl_2")
PLACE: dict[str, Any] = {"purpose": Purpose.GRAPH, "version": 1, "name": "graph", "suite": Suite.SMALL}


def _seal(room: SealedRoom, object_id: ObjectId = ONE, owner: TenantId = ACME) -> bytes:
    return room.keys.seal(owner, object_id, b"plain", **PLACE)


def _refused(code: str, call: Callable[[], object]) -> IntegrityError:
    with pytest.raises(IntegrityError) as raised:
        call()
    assert raised.value.error_code == code
    return raised.value


def test_what_was_sealed_opens_now_and_after_a_restart(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    assert room.keys.open(ACME, ONE, sealed, **PLACE) == b"plain"
    room.restarted()
    assert room.keys.open(ACME, ONE, memoryview(sealed), **PLACE) == b"plain"


OTHERS = {
    "purpose": {"purpose": Purpose.WEIGHTS},
    "version": {"version": 2},
    "name": {"name": "grapf"},
    "suite": {"suite": Suite.LARGE},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_another_place_of_the_same_object_does_not_open(room: SealedRoom, change: dict[str, Any]) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    _refused("sealed_invalid", lambda: room.keys.open(ACME, ONE, sealed, **(PLACE | change)))


def test_another_objects_and_another_tenants_key_do_not_open_it(room: SealedRoom) -> None:
    room.key_for(ONE)
    room.key_for(TWO)
    room.key_for("mdl_3", GLOBEX)
    sealed = _seal(room)
    _refused("sealed_invalid", lambda: room.keys.open(ACME, TWO, sealed, **PLACE))
    _refused("sealed_invalid", lambda: room.keys.open(GLOBEX, ObjectId("mdl_3"), sealed, **PLACE))
    _refused("key_missing", lambda: room.keys.open(GLOBEX, ONE, sealed, **PLACE))


def test_every_key_is_its_own_and_lies_wrapped(room: SealedRoom) -> None:
    drawn: list[bytes] = []

    class Watched(FakeEntropy):
        def random_bytes(self, count: int) -> bytes:
            drawn.append(super().random_bytes(count))
            return drawn[-1]

    room.entropy = Watched(seed=9)
    room.restarted()
    room.key_for(ONE)
    room.key_for(TWO)
    with room.database.tenant(TenantId("third"), by=BY) as tx:
        room.keys.create_tenant_key(tx, tx.owner)
    assert [len(key) for key in drawn] == [32, 32, 32]
    assert len(set(drawn)) == 3
    stored = b"".join(bytes(row["wrapped"]) for table in (wrapped_deks, wrapped_keks) for row in room.rows(table))  # type: ignore[call-overload]
    assert not any(key in stored for key in drawn)


def test_a_tenant_has_a_key_once_it_was_made(room: SealedRoom) -> None:
    third = TenantId("third")
    with room.database.tenant(third, by=BY) as tx:
        assert not room.keys.has_tenant_key(tx)
        _refused("key_missing", lambda: room.keys.create_key(tx, third, ONE))
        room.keys.create_tenant_key(tx, third)
        assert room.keys.has_tenant_key(tx)
        room.keys.create_key(tx, third, ONE)
    assert room.keys.open(third, ONE, _seal(room, ONE, third), **PLACE) == b"plain"


def test_a_second_first_key_is_refused_and_the_first_stays(room: SealedRoom) -> None:
    before = room.rows(wrapped_keks)
    with pytest.raises(DuplicateError), room.database.tenant(ACME, by=BY) as tx:
        room.keys.create_tenant_key(tx, ACME)
    assert room.rows(wrapped_keks) == before


def test_an_object_has_one_key(room: SealedRoom) -> None:
    room.key_for(ONE)
    before = room.rows(wrapped_deks)
    with pytest.raises(DuplicateError):
        room.key_for(ONE)
    assert room.rows(wrapped_deks) == before


def test_a_transaction_of_the_platform_may_make_a_tenants_keys(room: SealedRoom) -> None:
    third = TenantId("third")
    with room.database.platform() as tx:
        room.keys.create_tenant_key(tx, third)
        room.keys.create_key(tx, third, ONE)
    assert {row["tenant_id"] for row in room.rows(wrapped_deks)} == {third}
    with room.database.platform() as tx:
        room.keys.destroy_key(tx, third, ONE)
    assert room.rows(wrapped_deks) == []


class _NotOurs:
    def bump_epoch(self) -> None:
        pass


def test_keys_are_neither_made_nor_destroyed_in_a_transaction_of_another(room: SealedRoom) -> None:
    room.key_for(ONE)
    before = room.everything()
    calls: list[Callable[[Any], None]] = [
        lambda tx: room.keys.create_tenant_key(tx, ACME),
        lambda tx: room.keys.create_key(tx, ACME, TWO),
        lambda tx: room.keys.destroy_key(tx, ACME, ONE),
    ]
    for call in calls:
        with room.database.tenant(GLOBEX, by=BY) as tx, pytest.raises(ValueError, match="its owner"):
            call(tx)
        with pytest.raises(ValueError, match="its owner"):
            call(_NotOurs())
    assert room.everything() == before


def test_a_key_is_not_used_before_it_is_committed(room: SealedRoom) -> None:
    with pytest.raises(KeyboardInterrupt), room.database.tenant(ACME, by=BY) as tx:
        room.keys.create_key(tx, ACME, ONE)
        _refused("key_missing", lambda: _seal(room))
        raise KeyboardInterrupt
    _refused("key_missing", lambda: _seal(room))


def test_a_destroyed_key_is_gone_from_memory_and_from_the_database(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    with room.database.tenant(ACME, by=BY) as tx:
        room.keys.destroy_key(tx, ACME, ONE)
    assert room.rows(wrapped_deks) == []
    error = _refused("key_missing", lambda: room.keys.open(ACME, ONE, sealed, **PLACE))
    assert "mdl_1" not in error.message
    _refused("key_missing", lambda: _seal(room))


def test_destroying_one_key_leaves_the_others(room: SealedRoom) -> None:
    for object_id in (ONE, TWO):
        room.key_for(object_id)
    room.key_for(ONE + "x", GLOBEX)
    sealed = _seal(room, TWO)
    with room.database.tenant(ACME, by=BY) as tx:
        room.keys.destroy_key(tx, ACME, ONE)
        room.keys.destroy_key(tx, ACME, ONE)
    assert room.keys.open(ACME, TWO, sealed, **PLACE) == b"plain"
    assert {row["object_id"] for row in room.rows(wrapped_deks)} == {TWO, ONE + "x"}


def test_a_key_read_while_it_is_being_destroyed_is_not_remembered(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    with room.database.tenant(ACME, by=BY) as tx:
        room.keys.destroy_key(tx, ACME, ONE)
        # Another thread opens it before this commits: it still may, but the next call may not.
        assert room.keys.open(ACME, ONE, sealed, **PLACE) == b"plain"
    _refused("key_missing", lambda: room.keys.open(ACME, ONE, sealed, **PLACE))


def test_a_destruction_that_was_rolled_back_destroys_nothing(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    with pytest.raises(KeyboardInterrupt), room.database.tenant(ACME, by=BY) as tx:
        room.keys.destroy_key(tx, ACME, ONE)
        raise KeyboardInterrupt
    assert room.keys.open(ACME, ONE, sealed, **PLACE) == b"plain"


def test_keys_are_remembered_up_to_a_bound_the_least_used_go_first(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHED_KEYS", 2)
    three = [room.key_for(f"mdl_{number}") for number in range(3)]
    sealed = [_seal(room, object_id) for object_id in three[:2]]
    room.keys.open(ACME, three[0], sealed[0], **PLACE)
    _seal(room, three[2])
    with room.database.platform() as tx:
        tx.execute(sa.delete(wrapped_deks))
    assert room.keys.open(ACME, three[0], sealed[0], **PLACE) == b"plain"
    _refused("key_missing", lambda: room.keys.open(ACME, three[1], sealed[1], **PLACE))


def test_destroyed_keys_are_noted_up_to_a_bound(room: SealedRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DESTROYED_KEYS", 2)
    for number in range(4):
        with room.database.tenant(ACME, by=BY) as tx:
            room.keys.destroy_key(tx, ACME, ObjectId(f"mdl_{number}"))
    assert [object_id for _, object_id in room.keys._destroyed] == ["mdl_2", "mdl_3"]


def test_another_root_opens_nothing_and_says_so(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    before = room.everything()
    room.root = FakeRootKey("another")
    room.restarted()
    _refused("root_key_other", lambda: room.keys.open(ACME, ONE, sealed, **PLACE))
    _refused("root_key_other", lambda: room.key_for(TWO))
    assert room.everything() == before


def test_new_keys_are_wrapped_by_the_newest_of_the_tenants_keys(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    newer = KeyService(database=room.database, root=room.root, clock=room.clock, entropy=FakeEntropy(seed=5))
    bound = kek_context(ACME, version=2, root_id=room.root.id)
    with room.database.tenant(ACME, by=BY) as tx:
        kek = SecretBytes(b"\x07" * 32)
        tx.insert(wrapped_keks, version=2, root_id=room.root.id, wrapped=room.root.wrap(kek, bound), created_at=1)
        newer.create_key(tx, ACME, TWO)
    assert {row["object_id"]: row["kek_version"] for row in room.rows(wrapped_deks)} == {ONE: 1, TWO: 2}
    assert room.keys.open(ACME, TWO, _seal(room, TWO), **PLACE) == b"plain"
    assert room.keys.open(ACME, ONE, sealed, **PLACE) == b"plain"


def test_a_data_key_under_a_version_that_is_not_there_does_not_open(room: SealedRoom) -> None:
    room.key_for(ONE)
    sealed = _seal(room)
    room.restarted()
    with room.database.tenant(ACME, by=BY) as tx:
        tx.change(tx.update(wrapped_deks).values(kek_version=2))
    _refused("key_missing", lambda: room.keys.open(ACME, ONE, sealed, **PLACE))


def test_no_key_is_printed_or_pickled(room: SealedRoom) -> None:
    room.key_for(ONE)
    _seal(room)
    remembered = next(iter(room.keys._cache.values())).reveal()
    for shown in (repr(room.keys), str(room.keys), repr(vars(room.keys))):
        assert repr(remembered) not in shown
        assert remembered.hex() not in shown
    for thing in (room.keys, room.keys._cache):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_another_process_forgets_a_destroyed_key_when_it_sees_the_epoch(room: SealedRoom) -> None:
    seen = [1]
    other = KeyService(
        database=room.database, root=room.root, clock=room.clock, entropy=FakeEntropy(seed=9), epoch=lambda: seen[0]
    )
    room.key_for(ONE)
    sealed = _seal(room)
    assert other.open(ACME, ONE, sealed, **PLACE) == b"plain"
    with room.database.platform() as tx:
        room.keys.destroy_key(tx, ACME, ONE)
    assert other.open(ACME, ONE, sealed, **PLACE) == b"plain", "it has not seen the deletion"
    seen[0] += 1
    _refused("key_missing", lambda: other.open(ACME, ONE, sealed, **PLACE))


def test_the_root_key_is_looked_at_by_opening_the_newest_key(room: SealedRoom) -> None:
    room.keys.check_root(ACME)
    _refused("key_missing", lambda: room.keys.check_root(TenantId("cccccccc-0000-4000-8000-000000000003")))
    other = KeyService(database=room.database, root=FakeRootKey("another"), clock=room.clock, entropy=FakeEntropy())
    with pytest.raises(IntegrityError):
        other.check_root(ACME)
