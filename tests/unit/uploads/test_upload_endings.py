"""Every upload has two entries in the log, an intent and one end, whichever way it ends and whatever comes at once."""

from collections.abc import Callable
from typing import Any

import pytest

from fakes.core import ACME, GLOBEX, tenant_caller
from fakes.faulty_blobs import Crash, Fault
from fakes.sealed_room import BY, SealedRoom, parts_of
from modelkeep_platform.core.errors import ConflictError, UnavailableError
from modelkeep_platform.core.limits import UPLOAD_EXPIRY_S
from modelkeep_platform.storage.tables.uploads import uploads
from modelkeep_platform.uploads.rows import Upload

DATA = bytes(range(150))
OTHER = tenant_caller(name="other")


def begun(room: SealedRoom) -> Upload:
    """Begin an upload and send all of it."""
    upload = room.begin(DATA)
    for number, part in enumerate(parts_of(DATA)):
        room.send(upload, number, part)
    return upload


def refuse(room: SealedRoom, upload: Upload) -> None:
    with room.database.tenant(ACME, by=BY) as tx:
        room.endings.refuse(tx, upload, by=tenant_caller(), code="pickle_refused")
    room.endings.delete_bytes(upload)


def delete_object(room: SealedRoom, upload: Upload) -> None:
    with room.database.tenant(ACME, by=BY) as tx:
        room.endings.forget(tx, upload.object_id, by=OTHER)


def expire(room: SealedRoom, upload: Upload) -> None:
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    assert room.endings.expire() == 1


def abort(room: SealedRoom, upload: Upload) -> None:
    room.uploads.abort(tenant_caller(), upload.id)


ENDS: dict[str, tuple[Callable[[SealedRoom, Upload], None], str, dict[str, str], bool]] = {
    "completed": (lambda room, upload: room.complete(upload), "done", {}, True),
    "refused": (refuse, "failed", {"code": "pickle_refused"}, True),
    "given up": (abort, "abandoned", {"reason": "given_up"}, True),
    "its object deleted": (delete_object, "abandoned", {"reason": "deleted"}, True),
    "expired": (expire, "expired", {}, False),
}
EVERY_END = pytest.mark.parametrize(("end", "outcome", "facts", "somebody"), ENDS.values(), ids=ENDS.keys())


@EVERY_END
def test_each_end_is_the_second_entry_of_its_intent(
    room: SealedRoom,
    end: Callable[[SealedRoom, Upload], None],
    outcome: str,
    facts: dict[str, str],
    somebody: bool,
) -> None:
    upload = begun(room)
    (intent,) = room.recorder.entries()
    end(room, upload)
    first, second = room.recorder.entries()
    assert first == intent
    assert (intent["outcome"], second["outcome"]) == ("intent", outcome)
    assert intent["facts"] == {"upload": upload.id, "version": 1}
    assert second["facts"] == {"upload": upload.id, "version": 1, **facts}
    for entry in (intent, second):
        assert (entry["tenant"], entry["action"]) == (ACME, "model:create")
        assert entry["resource"] == {"owner": ACME, "kind": "model", "id": upload.object_id}
    assert intent["actor"] is not None
    assert (second["actor"] is not None) == somebody
    assert room.dropped == ([] if outcome == "done" else [upload.id])


@EVERY_END
@pytest.mark.parametrize("again", ENDS.keys())
def test_what_has_ended_ends_once(
    room: SealedRoom,
    end: Callable[[SealedRoom, Upload], None],
    outcome: str,
    facts: dict[str, str],
    somebody: bool,
    again: str,
) -> None:
    upload = begun(room)
    end(room, upload)
    room.endings.expire()
    entries, stored = room.recorder.entries(), dict(room.memory.data)
    try:
        if again == "expired":
            room.clock.advance(UPLOAD_EXPIRY_S + 1)
            assert room.endings.expire() == 0
        else:
            ENDS[again][0](room, upload)
    except ConflictError as exc:
        assert exc.error_code == "upload_ended"  # noqa: PT017 -- some are refused, others are no error
    assert room.recorder.entries() == entries
    assert room.dropped == ([] if outcome == "done" else [upload.id])
    if outcome == "done" and again not in ("refused", "its object deleted"):
        assert room.memory.data == stored


@EVERY_END
def test_an_end_that_is_taken_back_has_no_entry(
    room: SealedRoom,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[SealedRoom, Upload], None],
    outcome: str,
    facts: dict[str, str],
    somebody: bool,
) -> None:
    upload = begun(room)
    before = room.everything()
    record = room.recorder.record

    def die(tx: Any, event: Any) -> None:
        record(tx, event)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(room.recorder, "record", die)
        with pytest.raises(Crash):
            end(room, upload)
    assert [entry["outcome"] for entry in room.recorder.entries()] == ["intent"]
    assert room.rows(uploads)[0]["state"] == "open"
    # What the registry keeps goes in the same transaction; of the bytes none is gone, a manifest may be there more.
    assert before[0].items() <= room.memory.data.items()  # type: ignore[attr-defined]
    room.restarted()
    end(room, upload)
    assert [entry["outcome"] for entry in room.recorder.entries()] == ["intent", outcome]


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.BEFORE, Fault.AFTER])
def test_bytes_that_could_not_be_deleted_bring_no_third_entry(room: SealedRoom, fault: Fault) -> None:
    upload = begun(room)
    room.blobs.order("delete", fault, after=1)
    with pytest.raises((Crash, UnavailableError)):
        abort(room, upload)
    room.restarted()
    assert room.endings.expire() == 1
    assert room.memory.data == {}
    assert [entry["outcome"] for entry in room.recorder.entries()] == ["intent", "abandoned"]
    assert room.endings.expire() == 0


def test_a_refusal_stands_although_its_bytes_could_not_be_deleted(room: SealedRoom) -> None:
    upload = begun(room)
    with room.database.tenant(ACME, by=BY) as tx:
        room.endings.refuse(tx, upload, by=tenant_caller(), code="bad_cell")
    room.blobs.order("delete", Fault.EIO)
    room.endings.delete_bytes_later(upload)
    assert len(room.memory.data) == 3
    assert room.endings.expire() == 1
    assert room.memory.data == {}


def test_one_upload_whose_end_cannot_be_written_does_not_keep_the_others(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, kept = room.begin(DATA, object_id="mdl_a"), room.begin(DATA, object_id="mdl_b")
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    record = room.recorder.record

    def refuse_one(tx: Any, event: Any) -> None:
        if event.facts["upload"] == lost.id:
            raise UnavailableError("no", code="audit_unavailable")
        record(tx, event)

    with monkeypatch.context() as patched:
        patched.setattr(room.recorder, "record", refuse_one)
        assert room.endings.expire() == 1
    assert [row["state"] for row in room.rows(uploads)] == ["open", "aborted"]
    assert room.endings.expire() == 1
    ended = [entry["facts"]["upload"] for entry in room.recorder.entries() if entry["outcome"] == "expired"]
    assert ended == [kept.id, lost.id]


def test_each_tenants_log_has_its_own_uploads(room: SealedRoom) -> None:
    room.begin(DATA)
    room.begin(DATA, object_id="mdl_2", caller=tenant_caller(GLOBEX))
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    room.endings.expire()
    assert [(entry["tenant"], entry["outcome"]) for entry in room.recorder.entries()] == [
        (ACME, "intent"),
        (GLOBEX, "intent"),
        (ACME, "expired"),
        (GLOBEX, "expired"),
    ]
