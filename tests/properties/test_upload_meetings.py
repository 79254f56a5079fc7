"""One upload and two callers at once: at any moment of what one does, the other comes between.

Each is done whole or refused, as if one had come after the other; what is complete opens with every byte, and of what
was given up nothing stays.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fakes.core import ACME, FakeClock, tenant_caller
from fakes.moments import Moments
from fakes.sealed_room import PART_BYTES, SealedRoom, memory_database, parts_of
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.core.limits import UPLOAD_EXPIRY_S
from modelkeep_platform.uploads import artifacts, rows
from modelkeep_platform.uploads.rows import Upload

CALLER = tenant_caller()
DATA = bytes(range(PART_BYTES)) * 2 + b"the end"
PARTS = parts_of(DATA)
LAST = 14
"""More moments than any operation has."""


@dataclass
class State:
    """The model of an upload."""

    state: str = "open"
    over: bool = False
    gone: bool = False
    noted: dict[int, bytes] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        return self.state == "open" and not self.over

    def end(self) -> None:
        self.state, self.noted = "aborted", {}


@dataclass(frozen=True)
class Operation:
    """What a caller does, and what it does to the model; both return whether it is done rather than refused."""

    title: str
    run: Callable[[SealedRoom, Upload], object]
    change: Callable[[State], bool]

    def __repr__(self) -> str:
        return self.title


def put(number: int, data: bytes) -> Operation:
    """Send a part; wrong bytes that come first are taken, only the digest of the whole can tell."""

    def change(state: State) -> bool:
        return state.live and state.noted.setdefault(number, data) == data

    return Operation(f"put {number} {data[:1]!r}", lambda room, upload: room.send(upload, number, data), change)


def _complete(state: State) -> bool:
    if not state.live or [state.noted.get(number) for number in range(len(PARTS))] != PARTS:
        return False
    state.state = "complete"
    return True


def _abort(state: State) -> bool:
    if state.state != "complete":
        state.end()
    return state.state != "complete"


def _expire(state: State) -> bool:
    if state.state == "open" and state.over:
        state.end()
    return True


def _delete(state: State) -> bool:
    if state.state == "open":
        state.end()
    state.gone = True
    return True


def delete(room: SealedRoom, upload: Upload) -> None:
    """Delete the object, as its registry does: its key in the transaction that deletes it, its bytes after."""
    room.forget(upload.object_id)
    room.artifacts.delete(ACME, upload.object_id)


COMPLETE = Operation("complete", lambda room, upload: room.complete(upload), _complete)
ABORT = Operation("abort", lambda room, upload: room.uploads.abort(CALLER, upload.id), _abort)
EXPIRE = Operation("expire", lambda room, _upload: room.endings.expire(), _expire)
DELETE = Operation("delete", delete, _delete)
RIGHT = [put(number, part) for number, part in enumerate(PARTS)]
WRONG = [put(number, bytes(len(part))) for number, part in enumerate(PARTS)]
OPERATIONS = st.sampled_from([*RIGHT, *RIGHT, *WRONG, COMPLETE, ABORT, EXPIRE, DELETE])
ENDS = st.sampled_from([COMPLETE, ABORT, EXPIRE, DELETE])


class Meetings(RuleBasedStateMachine):
    """Each rule lets two callers meet on the upload and says beforehand what may come of it."""

    @initialize(sent=st.integers(0, 3))
    def start(self, sent: int) -> None:
        self.patch = pytest.MonkeyPatch()
        for module in (artifacts, rows):
            self.patch.setattr(module, "MAX_PART_BYTES", PART_BYTES)
        self.clock = FakeClock()
        self.room = SealedRoom(memory_database(), self.clock)
        self.upload = self.room.begin(DATA)
        self.state = State()
        for number in range(min(sent, len(PARTS))):
            self.room.send(self.upload, number, PARTS[number])
            self.state.noted[number] = PARTS[number]
        self.moments = Moments(self.room.database)
        self.room.blobs = self.moments.over(self.room.memory)  # type: ignore[assignment]
        self.room.restarted()

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.room.database.close()
            self.patch.undo()

    def done(self, operation: Operation) -> bool:
        try:
            operation.run(self.room, self.upload)
        except ModelkeepError:
            return False
        return True

    @rule(first=OPERATIONS, second=ENDS | OPERATIONS, moment=st.integers(1, LAST))
    def meet(self, first: Operation, second: Operation, moment: int) -> None:
        told: dict[int, bool] = {}
        self.moments.at(moment, lambda: told.update({1: self.done(second)}), within=False)
        told[0] = self.done(first)
        if not self.moments.happened():
            told[1] = self.done(second)
        possible = []
        for order in ((0, 1), (1, 0)):
            state = deepcopy(self.state)
            if {which: (first, second)[which].change(state) for which in order} == told:
                possible.append(state)
        seen = self.room.uploads.status(CALLER, self.upload.id)
        fitting = [one for one in possible if (seen.state, list(seen.received)) == (one.state, _received(one))]
        assert fitting, (first.title, second.title, told, seen, possible)
        self.state = self._right(fitting)

    def _right(self, fitting: list[State]) -> State:
        """Return the one of several states that look alike whose parts hold what is stored."""
        for state in fitting:
            if all(self._opened(number) == state.noted[number] for number in _received(state)):
                return state
        raise AssertionError("a part that is noted does not hold what was sent")

    def _opened(self, number: int) -> bytes:
        upload = self.upload
        return self.room.artifacts.open_part(ACME, upload.object_id, upload.version, upload.purpose, number)

    @rule()
    def time_is_over(self) -> None:
        self.clock.advance(UPLOAD_EXPIRY_S + 1)
        self.state.over = True

    @invariant()
    def what_is_complete_opens_and_of_what_is_given_up_nothing_stays(self) -> None:
        if not hasattr(self, "state"):
            return
        if self.state.state == "complete" and not self.state.gone:
            assert self.room.read(self.upload.object_id) == DATA
        if self.state.state == "aborted" or self.state.gone:
            assert self.room.memory.data == {}


def _received(state: State) -> list[int]:
    return sorted(state.noted) if state.state == "open" else []


TestMeetings = Meetings.TestCase
TestMeetings.settings = settings(
    max_examples=100,
    stateful_step_count=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


@pytest.mark.parametrize("moment", range(1, LAST))
def test_two_who_give_up_the_same_upload_are_both_told_that_it_is_over(moment: int) -> None:
    meeting = Meetings()
    meeting.start(sent=1)
    try:
        meeting.meet(first=ABORT, second=ABORT, moment=moment)
        meeting.what_is_complete_opens_and_of_what_is_given_up_nothing_stays()
    finally:
        meeting.teardown()
