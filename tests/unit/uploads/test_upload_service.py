"""Uploads: begun, sent in any order, resumed, ended once; to others they are not there."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX, FakeAuthorizer, tenant_caller
from fakes.faulty_blobs import Crash, Fault
from fakes.sealed_room import BY, PART_BYTES, SealedRoom, parts_of
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import (
    ConflictError,
    ForbiddenError,
    IntegrityError,
    ModelkeepError,
    NotFoundError,
    TooLargeError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.limits import MAX_UPLOAD_BYTES, UPLOAD_EXPIRY_S, TenantLimits
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.storage.tables.keys import wrapped_deks
from modelkeep_platform.storage.tables.uploads import upload_parts, uploads
from modelkeep_platform.uploads.rows import Upload

DATA = bytes(range(150))
PARTS = parts_of(DATA)


def refused(code: str, call: Callable[[], object], kind: type[ModelkeepError] = ConflictError) -> ModelkeepError:
    with pytest.raises(kind) as raised:
        call()
    assert raised.value.error_code == code
    return raised.value


def sent(room: SealedRoom, *numbers: int) -> Upload:
    upload = room.begin(DATA)
    for number in numbers:
        room.send(upload, number, PARTS[number])
    return upload


# --- beginning --------------------------------------------------------------------------------------


def test_an_upload_says_what_is_to_be_sent_until_when(room: SealedRoom) -> None:
    upload = room.begin(DATA)
    assert (upload.parts, upload.part_bytes, upload.size_bytes) == (3, PART_BYTES, 150)
    assert (upload.state, upload.received) == ("open", ())
    assert upload.expires_at == room.clock.now_s() + UPLOAD_EXPIRY_S
    assert upload.id.startswith("upl_")
    assert upload.principal == tenant_caller().principal
    assert room.uploads.status(tenant_caller(), upload.id) == upload


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_the_number_of_parts_is_that_of_the_size(room: SealedRoom, size: int, parts: int) -> None:
    assert room.begin(bytes(size)).parts == parts


BAD: dict[str, dict[str, Any]] = {
    "empty": {"size_bytes": 0},
    "negative": {"size_bytes": -1},
    "no digest": {"sha256": ""},
    "short digest": {"sha256": "0" * 63},
    "long digest": {"sha256": "0" * 65},
    "upper case": {"sha256": "A" * 64},
    "a newline": {"sha256": "0" * 64 + "\n"},
    "other digits": {"sha256": "٣" * 64},
}


def _begin(room: SealedRoom, **changes: Any) -> Upload:
    values: dict[str, Any] = {"size_bytes": 1, "sha256": "0" * 64, "object_id": ObjectId("mdl_9")}
    caller = tenant_caller()
    with room.database.tenant(ACME, by=caller) as tx:
        return room.uploads.begin(
            tx, caller=caller, kind=Kind.MODEL, version=1, purpose=Purpose.WEIGHTS, **(values | changes)
        )


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_a_size_or_digest_that_is_none_begins_nothing(room: SealedRoom, changes: dict[str, Any]) -> None:
    refused("invalid_upload", lambda: _begin(room, **changes), UnprocessableError)
    assert room.rows(uploads) == room.rows(wrapped_deks) == []


def test_more_than_an_upload_may_hold_begins_nothing(room: SealedRoom) -> None:
    refused("too_large", lambda: _begin(room, size_bytes=MAX_UPLOAD_BYTES + 1), TooLargeError)
    refused("too_large", lambda: _begin(room, size_bytes=2**80), TooLargeError)
    assert room.rows(uploads) == room.rows(wrapped_deks) == []


def test_a_new_object_gets_its_key_and_a_known_one_keeps_it(room: SealedRoom) -> None:
    room.begin(DATA)
    before = room.rows(wrapped_deks)
    assert len(before) == 1
    room.begin(DATA, version=2, create_key=False)
    assert room.rows(wrapped_deks) == before


def test_a_beginning_that_is_rolled_back_leaves_no_upload_and_no_key(room: SealedRoom) -> None:
    caller = tenant_caller()
    before = room.everything()
    with pytest.raises(KeyboardInterrupt), room.database.tenant(ACME, by=caller) as tx:
        room.uploads.begin(
            tx,
            caller=caller,
            object_id=ObjectId("mdl_9"),
            kind=Kind.MODEL,
            version=1,
            purpose=Purpose.WEIGHTS,
            size_bytes=1,
            sha256="0" * 64,
        )
        raise KeyboardInterrupt
    assert room.everything() == before
    assert room.recorder.entries() == []


def test_an_account_has_a_bounded_number_of_uploads_open(room: SealedRoom) -> None:
    room.limits.own[ACME] = TenantLimits(principal_open_uploads=2)
    for number in range(2):
        room.begin(DATA, object_id=f"mdl_{number}")
    refused("too_many_uploads", lambda: room.begin(DATA, object_id="mdl_more"))
    room.begin(DATA, object_id="mdl_more", caller=tenant_caller(name="another"))


def test_a_tenant_has_a_bounded_number_of_uploads_open_and_another_is_not_affected(room: SealedRoom) -> None:
    opened = [room.begin(DATA, object_id=f"mdl_{number}") for number in range(64)]
    refused("too_many_uploads", lambda: room.begin(DATA, object_id="mdl_more"))
    room.begin(DATA, object_id="mdl_theirs", caller=tenant_caller(GLOBEX))
    room.uploads.abort(tenant_caller(), opened[7].id)
    room.begin(DATA, object_id="mdl_last")
    assert len(room.rows(wrapped_deks)) == 66
    assert "mdl_more" not in {row["object_id"] for row in room.rows(wrapped_deks)}


# --- parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_parts_come_in_any_order(room: SealedRoom, order: tuple[int, ...]) -> None:
    upload = room.begin(DATA)
    assert [room.send(upload, number, PARTS[number]) for number in order] == [1, 2, 3]
    room.complete(upload)
    assert room.read() == DATA


def test_the_same_part_again_is_accepted_and_changes_nothing(room: SealedRoom) -> None:
    upload = sent(room, 1)
    before = room.everything()
    assert room.send(upload, 1, PARTS[1]) == 1
    assert room.everything() == before


def test_other_bytes_for_a_part_are_refused_and_change_nothing(room: SealedRoom) -> None:
    upload = sent(room, 1)
    before = room.everything()
    refused("part_conflict", lambda: room.send(upload, 1, bytes(PART_BYTES)))
    assert room.everything() == before


@pytest.mark.parametrize("number", [-1, 3, 2**31, 10**30])
def test_a_number_outside_the_upload_is_refused(room: SealedRoom, number: int) -> None:
    upload = room.begin(DATA)
    refused("invalid_part", lambda: room.send(upload, number, PARTS[0]), UnprocessableError)
    assert room.memory.data == {}


@pytest.mark.parametrize(("number", "length"), [(0, 0), (0, 63), (0, 65), (2, 21), (2, 23), (2, 64)])
def test_a_part_of_another_length_is_refused(room: SealedRoom, number: int, length: int) -> None:
    upload = room.begin(DATA)
    refused("invalid_part", lambda: room.send(upload, number, bytes(length)), UnprocessableError)
    assert room.memory.data == {}
    assert room.rows(upload_parts) == []


@pytest.mark.parametrize("digest", [b"", bytes(32), bytes(31), hashlib.sha256(PARTS[0]).hexdigest().encode()])
def test_a_part_that_does_not_match_its_digest_is_refused(room: SealedRoom, digest: bytes) -> None:
    upload = room.begin(DATA)
    call = lambda: room.uploads.put_part(tenant_caller(), upload.id, 0, PARTS[0], digest)  # noqa: E731
    refused("digest_mismatch", call, UnprocessableError)
    assert room.memory.data == {}


def test_after_a_restart_the_upload_goes_on_where_it_was(room: SealedRoom) -> None:
    upload = sent(room, 2, 0)
    room.restarted()
    assert room.uploads.status(tenant_caller(), upload.id).received == (0, 2)
    assert room.send(upload, 1, PARTS[1]) == 3
    room.complete(upload)
    assert room.read() == DATA


def test_a_part_that_was_stored_but_not_noted_before_a_crash_is_sent_again(room: SealedRoom) -> None:
    upload = room.begin(DATA)
    room.blobs.order("write", Fault.AFTER)
    with pytest.raises(Crash):
        room.send(upload, 0, PARTS[0])
    stored = dict(room.memory.data)
    room.restarted()
    assert room.uploads.status(tenant_caller(), upload.id).received == ()
    # Other bytes are refused here too: the part that is there is authentic.
    refused("part_conflict", lambda: room.send(upload, 0, bytes(PART_BYTES)))
    assert room.send(upload, 0, PARTS[0]) == 1
    assert room.memory.data == stored


def _meanwhile(room: SealedRoom, monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Let `then` happen in another thread's stead, between the check of an upload and the write of its part."""
    real = room.blobs.create

    def create(key: str, data: bytes) -> bool:
        monkeypatch.setattr(room.blobs, "create", real)
        then()
        return real(key, data)

    monkeypatch.setattr(room.blobs, "create", create)


def test_of_two_that_send_a_part_at_once_both_are_told_the_truth(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = room.begin(DATA)
    _meanwhile(room, monkeypatch, lambda: room.send(upload, 0, PARTS[0]))
    assert room.send(upload, 0, PARTS[0]) <= 1
    _meanwhile(room, monkeypatch, lambda: room.send(upload, 1, PARTS[1]))
    refused("part_conflict", lambda: room.send(upload, 1, bytes(PART_BYTES)))
    room.send(upload, 2, PARTS[2])
    room.complete(upload)
    assert room.read() == DATA


def test_a_part_noted_meanwhile_with_other_bytes_is_a_conflict(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = room.begin(DATA)

    def note() -> None:
        with room.database.tenant(ACME, by=BY) as tx:
            tx.insert(upload_parts, upload_id=upload.id, number=0, size_bytes=64, sha256="0" * 64)

    _meanwhile(room, monkeypatch, note)
    refused("part_conflict", lambda: room.send(upload, 0, PARTS[0]))


@pytest.mark.parametrize("part", [PARTS[0], bytes(PART_BYTES)], ids=["the same bytes", "other bytes"])
def test_a_part_that_arrives_while_the_upload_completes_does_not_harm_it(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch, part: bytes
) -> None:
    upload = sent(room, 1, 2)

    def others() -> None:
        room.send(upload, 0, PARTS[0])
        room.complete(upload)

    _meanwhile(room, monkeypatch, others)
    with pytest.raises(ConflictError):
        room.send(upload, 0, part)
    assert room.read() == DATA
    assert room.rows(upload_parts) == []
    assert room.uploads.status(tenant_caller(), upload.id).state == "complete"


def test_a_part_that_arrives_while_the_upload_is_given_up_leaves_nothing(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = sent(room, 0)
    _meanwhile(room, monkeypatch, lambda: room.uploads.abort(tenant_caller(), upload.id))
    refused("upload_ended", lambda: room.send(upload, 1, PARTS[1]))
    assert room.memory.data == {}
    assert room.rows(upload_parts) == []


# --- ends -------------------------------------------------------------------------------------------


def test_missing_parts_are_named(room: SealedRoom) -> None:
    upload = sent(room, 1)
    error = refused("upload_incomplete", lambda: room.complete(upload))
    assert error.details == {"missing": [0, 2]}
    assert len(room.memory.data) == 1


def test_of_many_missing_parts_the_first_hundred_are_named(room: SealedRoom) -> None:
    upload = room.begin(bytes(PART_BYTES * 300))
    error = refused("upload_incomplete", lambda: room.complete(upload))
    assert error.details == {"missing": list(range(100))}


def test_a_whole_with_another_digest_is_refused_and_stays_invisible(room: SealedRoom) -> None:
    upload = room.begin(DATA, sha256="0" * 64)
    for number, part in enumerate(PARTS):
        room.send(upload, number, part)
    refused("digest_mismatch", lambda: room.complete(upload), UnprocessableError)
    with pytest.raises(IntegrityError):
        room.read()
    assert room.uploads.status(tenant_caller(), upload.id).state == "open"


def test_checking_again_after_a_crash_gives_the_same(room: SealedRoom) -> None:
    upload = sent(room, 0, 1, 2)
    room.uploads.check_complete(tenant_caller(), upload.id)
    room.restarted()
    room.complete(upload)
    assert room.read() == DATA


def test_the_manifest_names_what_was_opened_whatever_the_rows_say(room: SealedRoom) -> None:
    upload = sent(room, 0, 1, 2)
    with room.database.platform() as tx:
        tx.execute(sa.update(upload_parts).values(sha256="0" * 64, size_bytes=1))
    room.complete(upload)
    assert room.read() == DATA


ENDS: dict[str, Callable[[SealedRoom, Upload], object]] = {
    "complete": lambda room, upload: room.complete(upload),
    "aborted": lambda room, upload: room.uploads.abort(tenant_caller(), upload.id),
}


AGAIN: dict[str, Callable[[SealedRoom, Upload], object]] = {
    "complete": ENDS["complete"],
    "send": lambda room, upload: room.send(upload, 0, PARTS[0]),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN.keys())
def test_what_has_ended_does_not_go_on(
    room: SealedRoom, end: Callable[[SealedRoom, Upload], object], again: Callable[[SealedRoom, Upload], object]
) -> None:
    upload = sent(room, 0, 1, 2)
    end(room, upload)
    before = room.everything()
    refused("upload_ended", lambda: again(room, upload))
    assert room.everything() == before
    assert room.rows(upload_parts) == []


def test_what_is_complete_is_not_given_up_any_more(room: SealedRoom) -> None:
    upload = sent(room, 0, 1, 2)
    room.complete(upload)
    before = room.everything()
    refused("upload_ended", lambda: room.uploads.abort(tenant_caller(), upload.id))
    assert room.everything() == before


def test_giving_up_twice_or_late_is_no_error(room: SealedRoom) -> None:
    upload = sent(room, 0)
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    room.uploads.abort(tenant_caller(), upload.id)
    before = room.everything()
    room.uploads.abort(tenant_caller(), upload.id)
    assert room.everything() == before
    assert room.memory.data == {}


def test_deleting_an_object_ends_its_uploads_under_way_and_no_others(room: SealedRoom) -> None:
    room.upload(DATA)
    upload = room.begin(DATA, version=2, create_key=False)
    room.send(upload, 0, PARTS[0])
    other = room.begin(DATA, object_id="mdl_2")
    room.forget()
    refused("upload_ended", lambda: room.send(upload, 1, PARTS[1]))
    assert room.send(other, 0, PARTS[0]) == 1
    assert {row["upload_id"] for row in room.rows(upload_parts)} == {other.id}
    assert [row["state"] for row in room.rows(uploads)] == ["complete", "ending", "open"]
    room.endings.expire()
    assert not any("/mdl_1/2/" in key for key in room.memory.data)


def test_a_given_up_upload_leaves_nothing_and_no_other_version_is_touched(room: SealedRoom) -> None:
    room.upload(DATA)
    kept = dict(room.memory.data)
    upload = room.begin(DATA, version=2, create_key=False)
    room.send(upload, 0, PARTS[0])
    room.uploads.abort(tenant_caller(), upload.id)
    assert room.memory.data == kept
    assert room.uploads.status(tenant_caller(), upload.id).state == "aborted"
    assert room.read() == DATA


def test_giving_up_what_was_completed_meanwhile_deletes_nothing(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = sent(room, 0, 1, 2)
    real = room.uploads._require

    def require(*values: Any) -> Any:
        found = real(*values)
        monkeypatch.setattr(room.uploads, "_require", real)
        room.complete(upload)
        return found

    monkeypatch.setattr(room.uploads, "_require", require)
    refused("upload_ended", lambda: room.uploads.abort(tenant_caller(), upload.id))
    assert room.read() == DATA


def test_completing_what_was_given_up_meanwhile_shows_nothing(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = sent(room, 0, 1, 2)
    room.uploads.check_complete(tenant_caller(), upload.id)
    room.uploads.abort(tenant_caller(), upload.id)
    refused("upload_ended", lambda: room.finish(upload))
    assert room.memory.data == {}


# --- expiry -----------------------------------------------------------------------------------------


def test_an_upload_expires_after_its_last_second_and_not_in_it(room: SealedRoom) -> None:
    upload = sent(room, 0)
    room.clock.advance(UPLOAD_EXPIRY_S)
    assert room.endings.expire() == 0
    assert room.send(upload, 1, PARTS[1]) == 2
    room.clock.advance(1)
    refused("upload_ended", lambda: room.send(upload, 2, PARTS[2]))
    assert room.endings.expire() == 1
    assert room.memory.data == {}
    assert room.rows(upload_parts) == []
    assert room.uploads.status(tenant_caller(), upload.id).state == "aborted"
    assert room.endings.expire() == 0


def test_expiry_reaches_every_tenant_and_spares_what_is_complete_or_young(room: SealedRoom) -> None:
    room.upload(DATA, object_id="mdl_done")
    room.begin(DATA, object_id="mdl_a")
    room.begin(DATA, object_id="mdl_b", caller=tenant_caller(GLOBEX))
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    young = room.begin(DATA, object_id="mdl_c")
    assert room.endings.expire() == 2
    assert room.read("mdl_done") == DATA
    assert room.send(young, 0, PARTS[0]) == 1


def test_an_upload_completed_while_others_expire_keeps_its_bytes(
    room: SealedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = sent(room, 0, 1, 2)
    room.uploads.check_complete(tenant_caller(), upload.id)
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    real = room.endings._expire

    def expire(row: Any) -> bool:
        room.finish(upload)
        return real(row)

    monkeypatch.setattr(room.endings, "_expire", expire)
    assert room.endings.expire() == 0
    assert room.read() == DATA


def test_one_upload_that_cannot_be_deleted_does_not_keep_the_others(room: SealedRoom) -> None:
    for number in range(3):
        upload = room.begin(DATA, object_id=f"mdl_{number}")
        room.send(upload, 0, PARTS[0])
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    room.blobs.order("delete", Fault.EIO, after=1)
    assert room.endings.expire() == 2
    assert len(room.memory.data) == 1
    assert room.endings.expire() == 1
    assert room.memory.data == {}


# --- others -----------------------------------------------------------------------------------------

STRANGERS = {
    "another of the tenant": tenant_caller(name="other"),
    "another tenant": tenant_caller(GLOBEX, name="other"),
    "the same name in another tenant": tenant_caller(GLOBEX),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
def test_to_anybody_else_the_upload_is_not_there(room: SealedRoom, stranger: Any) -> None:
    upload = sent(room, 0, 1, 2)
    before = room.everything()
    calls: list[Callable[[str], object]] = [
        lambda upload_id: room.uploads.status(stranger, upload_id),
        lambda upload_id: room.uploads.put_part(stranger, upload_id, 0, PARTS[0], hashlib.sha256(PARTS[0]).digest()),
        lambda upload_id: room.uploads.put_part(stranger, upload_id, 99, b"", b""),
        lambda upload_id: room.uploads.check_complete(stranger, upload_id),
        lambda upload_id: room.uploads.abort(stranger, upload_id),
    ]
    for call in calls:
        foreign = refused("not_found", lambda call=call: call(upload.id), NotFoundError)  # type: ignore[misc]
        nothing = refused("not_found", lambda call=call: call("upl_nothing"), NotFoundError)  # type: ignore[misc]
        assert (foreign.message, foreign.details) == (nothing.message, nothing.details)
    assert room.everything() == before


@pytest.mark.parametrize("upload_id", ["", "*", "../x", "upl_\0", "%", "x" * 10_000, "upl_' OR 1=1 --"], ids=repr)
def test_an_id_that_is_none_is_not_found(room: SealedRoom, upload_id: str) -> None:
    sent(room, 0)
    refused("not_found", lambda: room.uploads.status(tenant_caller(), upload_id), NotFoundError)


def test_every_call_is_decided_and_a_refusal_changes_nothing(room: SealedRoom) -> None:
    upload = sent(room, 0)
    room.authorizer = FakeAuthorizer(lambda _caller, _action, _ref: False)
    room.restarted()
    before = room.everything()
    for call in (
        lambda: room.uploads.status(tenant_caller(), upload.id),
        lambda: room.send(upload, 1, PARTS[1]),
        lambda: room.uploads.check_complete(tenant_caller(), upload.id),
        lambda: room.uploads.abort(tenant_caller(), upload.id),
    ):
        refused("forbidden", call, ForbiddenError)
    assert room.everything() == before
    assert {(action, ref.object_id) for action, ref in room.authorizer.asked} == {(Action.UPLOAD_WRITE, upload.id)}


def test_an_authorizer_that_allows_what_is_not_there_is_not_believed(room: SealedRoom) -> None:
    class Broken(FakeAuthorizer):
        def require(self, *_: Any, **__: Any) -> Any:
            return None

    room.authorizer = Broken()
    room.restarted()
    with pytest.raises(RuntimeError, match="missing object was allowed"):
        room.uploads.status(tenant_caller(), "upl_nothing")


# --- what the platform makes itself -----------------------------------------------------------------


def test_what_the_platform_makes_is_sealed_under_a_key_made_for_it_and_gone_with_the_key(room: SealedRoom) -> None:
    object_id = room.key_for("job_1")
    manifest = room.artifacts.write(ACME, object_id, 1, Purpose.WEIGHTS, [DATA])
    assert manifest.sha256 == hashlib.sha256(DATA).hexdigest()
    assert room.read("job_1") == DATA
    room.forget(object_id)
    with pytest.raises(IntegrityError) as raised:
        room.read("job_1")
    assert raised.value.error_code == "key_missing"
