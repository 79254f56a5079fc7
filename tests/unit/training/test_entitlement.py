"""A job goes on only for whom the decision of now would allow it: at its claim, and before each segment."""

from collections.abc import Callable

import pytest

from fakes.core import ACME, tenant_caller
from fakes.rooms import ScriptedRunner, TrainingRoom, ask, finish, hear_brief, training_spec
from modelkeep_platform.core.actions import Action
from modelkeep_platform.workers.channel_sync import SyncChannel

ME = tenant_caller()


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
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_queued_job_that_was_revoked_gets_no_row_and_costs_nothing(
    room: TrainingRoom, change: Callable[[TrainingRoom], None]
) -> None:
    job = room.training.create(ME, training_spec())
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
    job = room.training.create(ME, training_spec())

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
