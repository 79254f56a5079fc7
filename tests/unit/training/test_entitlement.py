"""A job goes on only for whom the decision of now would allow it: at its claim, and before each segment."""

from collections.abc import Callable

import pytest

from fakes.core import ACME, GLOBEX, tenant_caller
from fakes.rooms import (
    OPEN_CELLS,
    ScriptedRunner,
    TrainingRoom,
    ask,
    cells,
    finish,
    hear_brief,
    honest,
    training_spec,
)
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.decisions import Attributes
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.training.values import TrainingJob
from modelkeep_platform.workers.channel_sync import SyncChannel

ME, THEM = tenant_caller(), tenant_caller(GLOBEX)


def add_base(room: TrainingRoom, owner: TenantCaller) -> None:
    """Give `owner` the model `base` with one version, made from public rows."""
    spec = training_spec(dataset="open", privacy=None, into="base", steps=1)
    room.training.create(owner, spec)
    assert room.dispatcher(ScriptedRunner(honest)).run_one()


def grant_base(room: TrainingRoom) -> None:
    ref = room.models.resolve(ME, "globex~base")
    room.authorizer.granted.add((ACME, Action.MODEL_EXPORT, ref.object_id))


def begin(room: TrainingRoom) -> TrainingJob:
    """Queue a private job that goes on from a model which another tenant granted."""
    room.add(OPEN_CELLS, cells(), THEM)
    add_base(room, THEM)
    grant_base(room)
    return room.training.create(ME, training_spec(model={"name": "globex~base", "version": 1}))


def refuse(room: TrainingRoom, action: Action) -> None:
    room.authorizer.rule = lambda _caller, asked, _ref: asked is not action
    room.epoch.refresh()


def forget(room: TrainingRoom, who: str) -> None:
    room.principals.gone.add(who)
    room.epoch.refresh()


CHANGES: dict[str, Callable[[TrainingRoom], None]] = {
    "the dataset may not be trained on": lambda room: refuse(room, Action.DATASET_TRAIN),
    "jobs may not be made": lambda room: refuse(room, Action.JOB_CREATE),
    "the tenant is suspended": lambda room: forget(room, ACME),
    "the principal is gone": lambda room: forget(room, ME.principal),
    "the model it makes may not be made": lambda room: refuse(room, Action.MODEL_CREATE),
    "the base may not be exported": lambda room: refuse(room, Action.MODEL_EXPORT),
    "the base's grant ended by the clock": lambda room: room.authorizer.granted.clear(),
    "the base's owner is suspended": lambda room: forget(room, GLOBEX),
    "the base is deleted": lambda room: room.models.delete(THEM, "base"),
    "the base's version is deleted": lambda room: room.models.delete_version(THEM, "base", "1"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_queued_job_that_was_revoked_gets_no_row_and_costs_nothing(
    room: TrainingRoom, change: Callable[[TrainingRoom], None]
) -> None:
    job = begin(room)
    heard: list[str] = []

    def script(channel: SyncChannel) -> None:
        heard.append(channel.receive().kind)

    change(room)
    room.dispatcher(ScriptedRunner(script)).run_one()
    room.authorizer.rule = lambda *_: True
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code, heard) == ("failed", "job_revoked", [])
    budget = room.datasets.budget(ME, "cells")
    assert (budget.epsilon_spent, budget.epsilon_reserved) == (0.0, 0.0)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_running_job_that_is_revoked_runs_no_further_segment(
    room: TrainingRoom, change: Callable[[TrainingRoom], None]
) -> None:
    job = begin(room)

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(3):
            ask(channel, number, 1)
        change(room)
        for number in range(3, 8):
            ask(channel, number, 1)
        finish(channel, fields)

    room.dispatcher(ScriptedRunner(script)).run_one()
    room.authorizer.rule = lambda *_: True
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "job_revoked")
    budget = room.datasets.budget(ME, "cells")
    assert 0 < budget.epsilon_spent < 1
    assert budget.epsilon_reserved == 0
    assert [charge.steps for charge in budget.charges] == [3] or budget.charges[0].state != "committed"


def test_a_job_that_may_go_on_is_asked_about_only_when_something_changed(room: TrainingRoom) -> None:
    room.training.create(ME, training_spec())
    before = len(room.authorizer.asked)

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(8):
            if number == 4:
                room.epoch.refresh()
            ask(channel, number, 1)
        finish(channel, fields)

    room.dispatcher(ScriptedRunner(script)).run_one()
    assert len(room.authorizer.asked) == before


def test_a_base_of_ones_own_is_asked_about_too(room: TrainingRoom) -> None:
    add_base(room, ME)
    job = room.training.create(ME, training_spec(model={"name": "base", "version": 1}))
    refuse(room, Action.MODEL_EXPORT)
    room.dispatcher(ScriptedRunner(honest)).run_one()
    room.authorizer.rule = lambda *_: True
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "job_revoked")


def test_a_job_that_may_go_on_from_a_granted_model_makes_its_version(room: TrainingRoom) -> None:
    job = begin(room)
    room.epoch.refresh()
    room.dispatcher(ScriptedRunner(honest)).run_one()
    assert room.training.get(ME, job.id).state == "succeeded"


@pytest.mark.parametrize(("moved", "alias"), [(False, "production"), (True, "")], ids=["stays", "moved"])
def test_policies_see_the_base_as_they_would_if_it_were_asked_for_now(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch, moved: bool, alias: str
) -> None:
    add_base(room, ME)
    add_base(room, ME)
    room.models.set_alias(ME, "base", "production", 1)
    room.training.create(ME, training_spec(into="next", model={"name": "base"}))
    if moved:
        room.models.set_alias(ME, "base", "production", 2)
    seen: list[tuple[Action, Attributes | None]] = []
    allows = room.authorizer.allows

    def note(caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None) -> bool:
        seen.append((action, attributes))
        return allows(caller, action, ref, attributes)

    monkeypatch.setattr(room.authorizer, "allows", note)
    room.dispatcher(ScriptedRunner(honest)).run_one()
    assert (Action.MODEL_CREATE, {"name": "next"}) in seen
    assert (Action.MODEL_EXPORT, {"name": "base", "alias": alias, "version": 1}) in seen
