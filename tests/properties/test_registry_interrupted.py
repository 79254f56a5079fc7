"""The registry against a simple model, while callers die and others come between at any moment of any operation.

Whoever dies leaves what was before or what was wanted. Of two who meet, each has happened whole or was refused: what is
there is what one after the other would have left.
"""

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fakes.core import FakeClock, FakeEntropy, FakeRecorder, FakeSealer, tenant_caller
from fakes.faulty_blobs import Crash, MemoryBlobs
from fakes.graphs import weights_of
from fakes.moments import Moments
from fakes.registry import GRAPH, ModelRoom, memory_room
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.storage.pages import PageRequest

ME = tenant_caller()
LAST = 40
"""More moments than any operation has; most have a quarter of it."""


@dataclass
class Known:
    """What one model shows: versions with the byte their weights are filled with, and aliases."""

    ready: dict[int, int] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)


State = dict[str, Known]


@dataclass(frozen=True)
class Operation:
    """Something that a caller does, and what it does to the model of the registry.

    Args:
        name: of the model.
        run: does it.
        change: the same on a state, where a new version gets the number it is given; returns whether it is done rather
            than refused.
        ends: whether it takes something away, so that whoever uses it meanwhile may be refused.
        version: the number that it names.
    """

    title: str
    name: str
    run: Callable[[ModelRoom], object]
    change: Callable[[State, int], bool]
    ends: bool = False
    version: int = 0

    def __repr__(self) -> str:
        return self.title


def add(name: str, fill: int) -> Operation:
    """Upload a version, from its creation to its completion."""
    return Operation(
        f"add {name} {fill}",
        name,
        lambda room: room.add(name, fill),
        lambda state, number: _new(state, name, number, fill),
    )


def train(name: str, fill: int) -> Operation:
    """Register what a job of its own trained."""

    def run(room: ModelRoom) -> int:
        return room.train(name, f"job_{room.entropy.random_bytes(8).hex()}", [weights_of(GRAPH, fill=fill)])

    return Operation(f"train {name} {fill}", name, run, lambda state, number: _new(state, name, number, fill))


def _new(state: State, name: str, number: int, fill: int) -> bool:
    state.setdefault(name, Known()).ready[number] = fill
    return True


def point(name: str, alias: str, version: int) -> Operation:
    """Point an alias at a version."""

    def change(state: State, _number: int) -> bool:
        if version not in state.get(name, Known()).ready:
            return False
        state[name].aliases[alias] = version
        return True

    return Operation(
        f"point {name} {alias} {version}",
        name,
        lambda room: room.models.set_alias(ME, name, alias, version),
        change,
        version=version,
    )


def unpoint(name: str, alias: str) -> Operation:
    """Delete an alias."""

    def change(state: State, _number: int) -> bool:
        return name in state and state[name].aliases.pop(alias, None) is not None

    return Operation(
        f"unpoint {name} {alias}", name, lambda room: room.models.delete_alias(ME, name, alias), change, ends=True
    )


def delete_version(name: str, version: int) -> Operation:
    """Delete one version with its aliases."""

    def change(state: State, _number: int) -> bool:
        known = state.get(name, Known())
        if known.ready.pop(version, None) is None:
            return False
        known.aliases = {alias: at for alias, at in known.aliases.items() if at != version}
        if not known.ready:
            del state[name]
        return True

    return Operation(
        f"delete {name} {version}",
        name,
        lambda room: room.models.delete_version(ME, name, str(version)),
        change,
        ends=True,
        version=version,
    )


def delete(name: str) -> Operation:
    """Delete a model. One without a version is not shown, and may be there."""

    def change(state: State, _number: int) -> bool:
        return state.pop(name, None) is not None

    return Operation(f"delete {name}", name, lambda room: room.models.delete(ME, name), change, ends=True)


NAMES = st.sampled_from(["cells", "rows"])
ALIASES = st.sampled_from(["production", "staging"])
VERSIONS = st.integers(1, 5)
FILLS = st.integers(0, 255)
OPERATIONS = st.one_of(
    st.builds(add, NAMES, FILLS),
    st.builds(train, NAMES, FILLS),
    st.builds(point, NAMES, ALIASES, VERSIONS),
    st.builds(unpoint, NAMES, ALIASES),
    st.builds(delete_version, NAMES, VERSIONS),
    st.builds(delete, NAMES),
)
MOMENTS = st.integers(1, LAST // 4) | st.integers(1, LAST)


class InterruptedRegistry(RuleBasedStateMachine):
    """Each rule does one or two things and says beforehand which states may come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        database = self.opened.enter_context(memory_room()).database
        blobs = MemoryBlobs()
        self.room = ModelRoom(database, blobs, FakeClock(), FakeEntropy(), FakeRecorder())
        sealer = self.room.sealer
        assert isinstance(sealer, FakeSealer)
        self.moments = Moments(database, sealer)
        self.room = ModelRoom(database, self.moments.over(blobs), FakeClock(), FakeEntropy(), FakeRecorder())
        self.room.sealer.keys = sealer.keys
        self.state: State = {}

    def teardown(self) -> None:
        self.opened.close()

    def done(self, operation: Operation) -> bool:
        try:
            operation.run(self.room)
        except ModelkeepError:
            return False
        return True

    def seen(self) -> State:
        """Read everything that the registry shows."""
        found: State = {}
        for model in self.room.models.list(ME, PageRequest()).items:
            known = found[model.name] = Known(aliases=dict(model.aliases))
            for version in self.room.models.list_versions(ME, model.name, PageRequest()).items:
                _, chunks = self.room.models.export_weights(ME, model.name, str(version.version))
                data = b"".join(chunks)
                known.ready[version.version] = data[-1]
                assert data == weights_of(GRAPH, fill=data[-1])
        return found

    def take(self, possible: list[State]) -> None:
        """Go on from what is there, which must be one of the `possible` states but for the numbers of new versions."""
        seen = self.seen()
        assert any(_same(seen, state) for state in possible), (seen, possible)
        self.state = seen

    @rule(operation=OPERATIONS)
    def do(self, operation: Operation) -> None:
        after = deepcopy(self.state)
        wanted = operation.change(after, -1)
        # A model that shows no version can be deleted, too.
        assert self.done(operation) is wanted or operation.ends
        self.take([after])

    @rule(operation=OPERATIONS, moment=MOMENTS)
    def die(self, operation: Operation, moment: int) -> None:
        after = deepcopy(self.state)
        operation.change(after, -1)

        def crash() -> None:
            raise Crash

        self.moments.at(moment, crash, within=True)
        try:
            self.done(operation)
        except Crash:
            self.take([self.state, after])
        else:
            self.moments.happened()
            self.take([after])

    @rule(first=OPERATIONS, second=OPERATIONS, moment=MOMENTS)
    def meet(self, first: Operation, second: Operation, moment: int) -> None:
        before = self.state
        told: dict[str, bool] = {}
        self.moments.at(moment, lambda: told.update(second=self.done(second)), within=False)
        told["first"] = self.done(first)
        if not self.moments.happened():
            told["second"] = self.done(second)
        possible = []
        pair = {"first": (first, second), "second": (second, first)}
        # A new version has a number of its own, which may be the one that the other names.
        choices = [
            {mark, mark if its.version in before.get(its.name, Known()).ready else its.version or mark}
            for mark, its in ((-1, second), (-2, first))
        ]
        for numbers in product(*choices):
            for order in (("first", "second"), ("second", "first")):
                state, number = deepcopy(before), dict(zip(pair, numbers, strict=True))
                wanted = {which: pair[which][0].change(state, number[which]) for which in order}
                if all(_may(told[which], wanted[which], pair[which][0]) for which in pair):
                    possible.append(state)
        # Whoever was refused because of the other has changed nothing.
        for which, (mine, its) in pair.items():
            if not told[which] and its.ends and its.name == mine.name:
                state = deepcopy(before)
                its.change(state, -1)
                possible.append(state)
        self.take(possible)

    @invariant()
    def what_is_shown_can_be_used(self) -> None:
        if not hasattr(self, "state"):
            return
        for name, known in self.state.items():
            assert set(known.aliases.values()) <= set(known.ready)
            meant = self.room.models.resolve_version(ME, name, None, Action.MODEL_PREDICT)
            assert meant.version == known.aliases.get("production", max(known.ready))


def _may(told: bool, wanted: bool, operation: Operation) -> bool:
    return told is wanted or (told and operation.ends)


def _same(seen: State, wanted: State) -> bool:
    """Compare, when versions that are new have any number of their own."""
    if {name: known.aliases for name, known in seen.items()} != {name: known.aliases for name, known in wanted.items()}:
        return False
    for name, known in wanted.items():
        old = {number: fill for number, fill in known.ready.items() if number > 0}
        new = sorted(fill for number, fill in known.ready.items() if number < 0)
        found = seen[name].ready
        if {number: found.get(number) for number in old} != old:
            return False
        if sorted(fill for number, fill in found.items() if number not in old) != new:
            return False
    return True


TestInterruptedRegistry = InterruptedRegistry.TestCase
TestInterruptedRegistry.settings = settings(
    max_examples=20,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
