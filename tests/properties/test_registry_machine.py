"""The registry against a simple model: uploads, refusals, training, aliases, deletions, in any order."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.core import ACME, tenant_caller
from fakes.faulty_blobs import Crash, Fault, FaultyBlobs
from fakes.graphs import weights_of
from fakes.registry import GRAPH, memory_room
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import ConflictError, NotFoundError, UnprocessableError
from modelkeep_platform.models.trained import TrainedVersion
from modelkeep_platform.storage.pages import PageRequest

ME = tenant_caller()
NAMES = st.sampled_from(["cells", "rows"])
ALIASES = st.sampled_from(["production", "staging"])
NUMBERS = st.integers(0, 6)


@dataclass
class Known:
    """The model's idea of one model."""

    next_version: int = 1
    ready: dict[int, int] = field(default_factory=dict)  # number -> the byte its weights are filled with
    aliases: dict[str, int] = field(default_factory=dict)


@dataclass
class Begun:
    """An upload that waits: of which model, which number, filled with what (None: a pickle)."""

    name: str
    version: int
    fill: int | None
    upload: str
    of: Known


@dataclass
class Training:
    """A version that a job makes: stored and not visible."""

    name: str
    job: str
    fill: int
    made: TrainedVersion
    of: Known


class RegistryMachine(RuleBasedStateMachine):
    """Each rule does one thing and says beforehand what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.room = self.opened.enter_context(memory_room())
        self.service = self.room.models
        self.known: dict[str, Known] = {}
        self.waiting: list[Begun] = []
        self.jobs = 0
        self.training: list[Training] = []
        self.given: set[tuple[str, int]] = set()  # every number that a model ever gave out

    def teardown(self) -> None:
        self.opened.close()

    def missed(self, call: Callable[[], object]) -> None:
        with pytest.raises(NotFoundError):
            call()

    def allocate(self, name: str, model_id: str, version: int) -> Known:
        known = self.known.setdefault(name, Known())
        assert version == known.next_version
        assert (model_id, version) not in self.given
        self.given.add((model_id, version))
        known.next_version += 1
        return known

    def forget_unused(self, begun: "Begun | Training") -> None:
        """A model that gave out no number but that of `begun` goes with it."""
        if self.known.get(begun.name) is begun.of and begun.of.next_version == 2:
            del self.known[begun.name]

    def visible(self) -> dict[str, Known]:
        return {name: known for name, known in self.known.items() if known.ready}

    @rule(name=NAMES, fill=st.none() | st.integers(0, 255))
    def begin(self, name: str, fill: int | None) -> None:
        weights = b"\x80\x04N." if fill is None else weights_of(GRAPH, fill=fill)
        new = self.room.send(name, weights)
        known = self.allocate(name, new.model_id, new.version)
        self.waiting.append(Begun(name, new.version, fill, new.upload.id, known))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        begun = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if self.known.get(begun.name) is not begun.of:
            self.over(begun)
        elif begun.fill is None:
            with pytest.raises(UnprocessableError) as raised:
                self.room.admission.complete(ME, begun.upload)
            assert raised.value.error_code == "pickle_refused"
            self.forget_unused(begun)
        else:
            made = self.room.admission.complete(ME, begun.upload)
            assert (made.name, made.version, made.state) == (begun.name, begun.version, "ready")
            begun.of.ready[begun.version] = begun.fill

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        begun = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.room.uploads.abort(ME, begun.upload)
        self.forget_unused(begun)
        self.over(begun)

    def over(self, begun: Begun) -> None:
        with pytest.raises(ConflictError) as raised:
            self.room.admission.complete(ME, begun.upload)
        assert raised.value.error_code == "upload_ended"

    @rule(name=NAMES, fill=st.integers(0, 255))
    def train(self, name: str, fill: int) -> None:
        version = self.room.train(name, self.new_job(), [weights_of(GRAPH, fill=fill)])
        known = self.allocate(name, self.service.resolve(ME, name).object_id, version)
        known.ready[version] = fill

    @rule(name=NAMES, fill=st.integers(0, 255))
    def begin_to_train(self, name: str, fill: int) -> None:
        job = self.new_job()
        new = self.room.begin(name, job)
        known = self.allocate(name, new.model_id, new.version)
        made = self.room.trained.store(ACME, new, GRAPH, [weights_of(GRAPH, fill=fill)])
        self.training.append(Training(name, job, fill, made, known))

    @precondition(lambda self: self.training)
    @rule(data=st.data(), success=st.booleans())
    def end_training(self, data: st.DataObject, success: bool) -> None:
        ended = self.training.pop(data.draw(st.integers(0, len(self.training) - 1)))
        if not success:
            self.room.drop(ended.job)
            self.forget_unused(ended)
        elif self.known.get(ended.name) is not ended.of:
            with pytest.raises(ConflictError):
                self.room.publish(ended.made, ended.job)
        else:
            self.room.publish(ended.made, ended.job)
            ended.of.ready[ended.made.version] = ended.fill

    def new_job(self) -> str:
        self.jobs += 1
        return f"job_{self.jobs}"

    @rule(name=NAMES, alias=ALIASES, version=NUMBERS)
    def point(self, name: str, alias: str, version: int) -> None:
        known = self.visible().get(name)
        if known is None:
            self.missed(lambda: self.service.set_alias(ME, name, alias, version))
        elif version not in known.ready:
            with pytest.raises(UnprocessableError) as raised:
                self.service.set_alias(ME, name, alias, version)
            assert raised.value.error_code == "no_such_version"
        else:
            known.aliases[alias] = version
            assert self.service.set_alias(ME, name, alias, version).aliases == known.aliases

    @rule(name=NAMES, alias=ALIASES)
    def unpoint(self, name: str, alias: str) -> None:
        known = self.visible().get(name)
        if known is None or alias not in known.aliases:
            self.missed(lambda: self.service.delete_alias(ME, name, alias))
        else:
            self.service.delete_alias(ME, name, alias)
            del known.aliases[alias]

    @rule(name=NAMES, version=NUMBERS.map(str) | ALIASES)
    def delete_version(self, name: str, version: str) -> None:
        known = self.visible().get(name)
        number = None if known is None else known.aliases.get(version, int(version) if version.isdigit() else None)
        if known is None or number not in known.ready or number is None:
            self.missed(lambda: self.service.delete_version(ME, name, version))
            return
        self.service.delete_version(ME, name, version)
        del known.ready[number]
        known.aliases = {alias: at for alias, at in known.aliases.items() if at != number}

    @precondition(lambda self: self.visible())
    @rule(data=st.data())
    def delete_a_version_and_die_halfway(self, data: st.DataObject) -> None:
        name, known = data.draw(st.sampled_from(sorted(self.visible().items(), key=lambda item: item[0])))
        number = data.draw(st.sampled_from(sorted(known.ready)))
        self.room.artifacts._blobs = blobs = FaultyBlobs(self.room.blobs)
        blobs.order("delete", Fault.BEFORE)
        with pytest.raises(Crash):
            self.service.delete_version(ME, name, str(number))
        self.room.artifacts._blobs = self.room.blobs
        del known.ready[number]
        known.aliases = {alias: at for alias, at in known.aliases.items() if at != number}
        assert self.room.orphans.clear() == 1

    @rule()
    def clear_what_is_nobodys(self) -> None:
        assert self.room.orphans.clear() == 0

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.known:
            self.service.delete(ME, name)
            del self.known[name]
        else:
            self.missed(lambda: self.service.delete(ME, name))

    @invariant()
    def the_registry_says_what_the_model_says(self) -> None:
        if not hasattr(self, "known"):
            return
        visible = self.visible()
        listed = self.service.list(ME, PageRequest()).items
        assert {one.name: (one.latest_version, dict(one.aliases)) for one in listed} == {
            name: (max(known.ready), known.aliases) for name, known in visible.items()
        }
        for name, known in visible.items():
            versions = self.service.list_versions(ME, name, PageRequest()).items
            assert [one.version for one in versions] == sorted(known.ready, reverse=True)
            for number, fill in known.ready.items():
                _, chunks = self.service.export_weights(ME, name, str(number))
                assert b"".join(chunks) == weights_of(GRAPH, fill=fill)
            meant = self.service.resolve_version(ME, name, None, Action.MODEL_PREDICT)
            assert meant.version == known.aliases.get("production", max(known.ready))
        for name in {"cells", "rows"} - set(visible):
            assert self.service.resolve(ME, name).is_missing

    @invariant()
    def no_bytes_and_no_keys_are_left_of_what_is_not_there(self) -> None:
        if not hasattr(self, "known"):
            return
        assert len(self.room.sealer.keys) == len(self.known)
        versions = {tuple(key.split("/")[1:3]) for key in self.room.blobs.keys(ACME)}
        alive = sum(len(known.ready) for known in self.known.values())
        under_way: list[Begun | Training] = [*self.waiting, *self.training]
        assert len(versions) == alive + sum(self.known.get(one.name) is one.of for one in under_way)


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
