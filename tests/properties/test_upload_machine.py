"""Uploads against a simple model: any sequence of calls, clocks, restarts, broken disks and dying processes."""

import contextlib
import hashlib

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from fakes.core import ACME, FakeClock, tenant_caller
from fakes.faulty_blobs import Crash, Fault
from fakes.sealed_room import BY, PART_BYTES, SealedRoom, memory_database, parts_of
from modelkeep_platform.core.errors import ConflictError, ModelkeepError, UnavailableError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.limits import UPLOAD_EXPIRY_S
from modelkeep_platform.uploads import artifacts, rows
from modelkeep_platform.uploads.rows import Upload

CALLER = tenant_caller()
FAULTS = st.sampled_from([Fault.EIO, Fault.FULL, Fault.TORN, Fault.UNSYNCED, Fault.BEFORE, Fault.AFTER])


class Sent:
    """The model's idea of one upload."""

    def __init__(self, upload: Upload, data: bytes) -> None:
        self.real, self.data = upload, data
        self.parts = parts_of(data)
        self.noted: dict[int, bytes] = {}
        self.stored: dict[int, bytes] = {}  # what authenticates in the store, noted or not
        self.state = "open"
        self.gone = False  # its object was deleted

    @property
    def object_id(self) -> ObjectId:
        return self.real.object_id


class UploadMachine(RuleBasedStateMachine):
    """Each rule says beforehand what must come of it; whatever fails, the stored state is checked after it."""

    uploads = Bundle("uploads")

    @initialize()
    def start(self) -> None:
        self.patch = pytest.MonkeyPatch()
        for module in (artifacts, rows):
            self.patch.setattr(module, "MAX_PART_BYTES", PART_BYTES)
        self.clock = FakeClock()
        self.room = SealedRoom(memory_database(), self.clock)
        self.all: list[Sent] = []

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.room.database.close()
            self.patch.undo()

    def live(self, sent: Sent) -> bool:
        return sent.state == "open" and self.clock.now_s() <= sent.real.expires_at

    def right(self, sent: Sent) -> bool:
        return [sent.noted.get(number) for number in range(len(sent.parts))] == sent.parts

    def refused(self, code: str, sent: Sent, number: int, data: bytes) -> None:
        with pytest.raises(ModelkeepError) as raised:
            self.room.send(sent.real, number, data)
        assert raised.value.error_code == code

    @rule(target=uploads, data=st.binary(min_size=1, max_size=3 * PART_BYTES))
    def begin(self, data: bytes) -> Sent:
        sent = Sent(self.room.begin(data, object_id=f"mdl_{len(self.all)}"), data)
        self.all.append(sent)
        return sent

    @rule(sent=uploads, number=st.integers(0, 2), wrong=st.booleans())
    def send(self, sent: Sent, number: int, wrong: bool) -> None:
        if number >= len(sent.parts):
            self.refused("invalid_part" if self.live(sent) else "upload_ended", sent, number, b"x")
            return
        part = sent.parts[number]
        data = bytes(byte ^ 0xFF for byte in part) if wrong else part
        if not self.live(sent):
            self.refused("upload_ended", sent, number, data)
        elif sent.stored.get(number, data) != data:
            self.refused("part_conflict", sent, number, data)
        else:
            # Wrong bytes that come first are taken: only the digest of the whole can tell.
            sent.noted[number] = sent.stored[number] = data
            assert self.room.send(sent.real, number, data) == len(sent.noted)

    @rule(sent=uploads, number=st.integers(0, 2), fault=FAULTS)
    def send_while_something_breaks(self, sent: Sent, number: int, fault: Fault) -> None:
        if number >= len(sent.parts) or not self.live(sent) or number in sent.noted:
            return
        if number in sent.stored:
            return
        self.room.blobs.order("write", fault)
        with pytest.raises((Crash, UnavailableError)):
            self.room.send(sent.real, number, sent.parts[number])
        if fault in (Fault.UNSYNCED, Fault.AFTER):
            sent.stored[number] = sent.parts[number]
        self.restart()

    @rule(sent=uploads)
    def complete(self, sent: Sent) -> None:
        if not self.live(sent):
            with pytest.raises(ConflictError) as raised:
                self.room.complete(sent.real)
            assert raised.value.error_code == "upload_ended"
        elif len(sent.noted) < len(sent.parts):
            with pytest.raises(ConflictError) as raised:
                self.room.complete(sent.real)
            assert raised.value.details["missing"] == sorted(set(range(len(sent.parts))) - sent.noted.keys())
        elif not self.right(sent):
            with pytest.raises(UnprocessableError) as mismatch:
                self.room.complete(sent.real)
            assert mismatch.value.error_code == "digest_mismatch"
        else:
            self.room.complete(sent.real)
            sent.state = "complete"

    @rule(sent=uploads, call=st.sampled_from(["write", "get"]), fault=FAULTS, after=st.integers(0, 2))
    def complete_while_something_breaks(self, sent: Sent, call: str, fault: Fault, after: int) -> None:
        if not self.live(sent) or not self.right(sent):
            return
        if call == "get":
            fault = Fault.SHORT if fault in (Fault.TORN, Fault.AFTER, Fault.UNSYNCED) else fault
            after = min(after, len(sent.parts) - 1)
        else:
            after = 0
        self.room.blobs.order(call, fault, after=after)
        with pytest.raises((Crash, ModelkeepError)):
            self.room.complete(sent.real)
        self.restart()

    @rule(sent=uploads)
    def die_between_check_and_commit(self, sent: Sent) -> None:
        if not self.live(sent) or not self.right(sent):
            return
        self.room.uploads.check_complete(CALLER, sent.real.id)
        with pytest.raises(KeyboardInterrupt), self.room.database.tenant(ACME, by=BY) as tx:
            self.room.endings.complete(tx, sent.real, by=CALLER)
            raise KeyboardInterrupt
        self.restart()

    @rule(sent=uploads, fault=st.one_of(st.none(), st.sampled_from([Fault.EIO, Fault.BEFORE, Fault.AFTER])))
    def abort(self, sent: Sent, fault: Fault | None) -> None:
        if sent.state == "complete":
            with pytest.raises(ConflictError):
                self.room.uploads.abort(CALLER, sent.real.id)
            return
        if fault is not None:
            self.room.blobs.order("delete", fault)
        try:
            self.room.uploads.abort(CALLER, sent.real.id)
        except (Crash, UnavailableError):
            self.restart()
        sent.state = "aborted"

    @rule(sent=consumes(uploads))
    def delete_the_object(self, sent: Sent) -> None:
        self.room.forget(sent.object_id)
        self.room.artifacts.delete(ACME, sent.object_id)
        sent.state = "aborted" if sent.state == "open" else sent.state
        sent.gone = True

    @rule(seconds=st.sampled_from([1, UPLOAD_EXPIRY_S // 2, UPLOAD_EXPIRY_S + 1]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(fault=st.one_of(st.none(), st.sampled_from([Fault.EIO, Fault.BEFORE, Fault.AFTER])))
    def expire(self, fault: Fault | None) -> None:
        if fault is not None:
            self.room.blobs.order("delete", fault)
            with contextlib.suppress(Crash):
                self.room.endings.expire()
            self.restart()
        self.room.endings.expire()
        for sent in self.all:
            if sent.state == "open" and not self.live(sent):
                sent.state = "aborted"
        # INVARIANT: after an expiry that was let run, nothing lies there but what is open or complete.
        kept = {sent.object_id for sent in self.all if sent.state != "aborted" and not sent.gone}
        assert {key.split("/")[1] for key in self.room.memory.data} <= kept

    @rule()
    def restart(self) -> None:
        self.room.blobs.mend()
        self.room.restarted()

    @invariant()
    def stored_is_what_the_model_says(self) -> None:
        if not hasattr(self, "all"):
            return
        for sent in self.all:
            found = self.room.uploads.status(CALLER, sent.real.id)
            assert found.state == sent.state
            assert found.received == (tuple(sorted(sent.noted)) if sent.state == "open" else ())
            if sent.state == "complete" and not sent.gone:
                assert hashlib.sha256(self.room.read(sent.object_id)).hexdigest() == sent.real.sha256
            # What is noted as received is there, and opens.
            for number in found.received:
                opened = self.room.artifacts.open_part(
                    ACME, sent.object_id, sent.real.version, sent.real.purpose, number
                )
                assert opened == sent.noted[number]

    @invariant()
    def every_upload_has_one_intent_and_one_end(self) -> None:
        if not hasattr(self, "all"):
            return
        said: dict[str, list[str]] = {}
        for entry in self.room.recorder.entries():
            said.setdefault(entry["facts"]["upload"], []).append(entry["outcome"])
        for sent in self.all:
            intent, *ends = said.pop(sent.real.id)
            assert intent == "intent"
            assert len(ends) == (0 if sent.state == "open" else 1)
            assert set(ends) <= ({"done"} if sent.state == "complete" else {"abandoned", "expired"})
        assert said == {}


TestUploadMachine = UploadMachine.TestCase
TestUploadMachine.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
