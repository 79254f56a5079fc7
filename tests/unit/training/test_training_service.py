"""A job is reserved and queued in one step, or it does not exist and nothing is spent."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import GLOBEX, tenant_caller
from fakes.rooms import OPEN_CELLS, ScriptedRunner, TrainingRoom, cells, honest, small_graph, training_spec
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.errors import (
    BudgetError,
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.models.graph.format import MAX_NODES, parse
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.jobs import jobs

ME = tenant_caller()


def all_but(action: Action) -> Callable[[Caller, Action, ResourceRef], bool]:
    return lambda _caller, asked, _ref: asked is not action


def nothing_happened(room: TrainingRoom) -> bool:
    budget = room.datasets.budget(ME, "cells")
    queued = room.training.list(ME, PageRequest()).items
    done = [event for event in room.recorder.events if event.outcome == "done"]
    return (budget.epsilon_spent, budget.epsilon_reserved, budget.charges, len(queued), done) == (0.0, 0.0, (), 0, [])


def test_a_plan_spends_nothing_and_says_what_a_job_costs(room: TrainingRoom) -> None:
    plan = room.training.plan(ME, training_spec())
    assert (plan.private, plan.fits, plan.steps, plan.sample_rate) == (True, True, 8, 0.5)
    assert (plan.epsilon, plan.delta, plan.n_public, plan.accountant) == (1.0, 1e-5, 100, "filter")
    assert plan.rdp_epsilon is not None
    assert plan.epsilon_spent_after is not None
    assert 0 < plan.rdp_epsilon <= plan.epsilon_spent_after <= 1.0
    assert nothing_happened(room)


def test_a_plan_on_public_data_has_no_privacy(room: TrainingRoom) -> None:
    plan = room.training.plan(ME, training_spec(dataset="open", privacy=None))
    assert (plan.private, plan.fits, plan.noise_multiplier, plan.epsilon) == (False, True, None, None)


def test_a_job_reserves_its_whole_cost_and_is_queued(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    assert (job.state, job.dataset, job.into, job.name) == ("queued", "cells", "cells-model", "cells-model")
    assert (job.progress.step, job.progress.steps, job.created_by) == (0, 8, ME.principal)
    budget = room.datasets.budget(ME, "cells")
    assert budget.epsilon_spent == 0.0
    assert 0.9 < budget.epsilon_reserved <= 1.0
    assert room.training.get(ME, job.id) == job
    recorded = [(str(event.action), event.tenant) for event in room.recorder.events]
    assert recorded == [("job:create", ME.tenant), ("dataset:train", ME.tenant)]


@pytest.mark.parametrize("owner", [ME, tenant_caller(GLOBEX)], ids=["own", "granted"])
def test_the_owner_of_the_base_has_an_entry_as_of_a_download(room: TrainingRoom, owner: TenantCaller) -> None:
    if owner is not ME:
        room.add(OPEN_CELLS, cells(), owner)
    room.training.create(owner, training_spec(dataset="open", privacy=None, into="base", steps=1))
    assert room.dispatcher(ScriptedRunner(honest)).run_one()
    ref = room.models.resolve(owner, "base")
    room.authorizer.granted.add((ME.tenant, Action.MODEL_EXPORT, ref.object_id))
    name = "base" if owner is ME else "globex~base"
    room.recorder.events.clear()
    with pytest.raises(BudgetError):
        room.training.create(ME, training_spec(model={"name": name}, privacy={"epsilon": 9.0, "clip_norm": 1.0}))
    assert room.recorder.events == [], "a job that does not exist took nothing"
    job = room.training.create(ME, training_spec(model={"name": name}))
    (event,) = [event for event in room.recorder.events if event.action is Action.MODEL_EXPORT]
    assert (event.tenant, event.ref, event.outcome, event.actor) == (owner.tenant, ref, "done", ME)
    assert event.facts == {"version": 1, "job": job.id}


def test_the_graph_lies_sealed_in_the_queue(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    with room.database.platform(read_only=True) as tx:
        row = tx.first(sa.select(jobs))
    assert row is not None
    context: dict[str, Any] = {"purpose": Purpose.GRAPH, "version": 1, "name": "job", "suite": Suite.SMALL}
    opened = room.sealer.open(ME.tenant, ObjectId(job.id), bytes(row["payload"]), **context)
    assert b"in_features" in opened
    with pytest.raises(IntegrityError):
        room.sealer.open(ME.tenant, ObjectId("job_other"), bytes(row["payload"]), **context)


def test_what_does_not_fit_is_refused_spends_nothing_and_names_what_would(room: TrainingRoom) -> None:
    room.training.create(ME, training_spec(privacy={"epsilon": 2.0, "clip_norm": 1.0}))
    keys = set(room.sealer.keys)
    before = room.datasets.budget(ME, "cells")
    with pytest.raises(BudgetError) as caught:
        room.training.create(ME, training_spec(privacy={"epsilon": 2.0, "clip_norm": 1.0}))
    largest = caught.value.details["largest_epsilon"]
    assert isinstance(largest, float)
    assert 0 < largest < 2.0
    assert room.datasets.budget(ME, "cells") == before
    assert room.sealer.keys == keys
    job = room.training.create(ME, training_spec(privacy={"epsilon": largest, "clip_norm": 1.0}))
    assert job.state == "queued"


def test_cancelling_a_queued_job_returns_all_of_it(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    assert room.training.cancel(ME, job.id).state == "cancelled"
    budget = room.datasets.budget(ME, "cells")
    assert (budget.epsilon_spent, budget.epsilon_reserved) == (0.0, 0.0)
    assert room.training.cancel(ME, job.id).state == "cancelled"


def test_a_graph_without_room_for_its_scaling_costs_nothing(room: TrainingRoom) -> None:
    graph = small_graph()
    first = graph["nodes"][0]["id"]
    for at in range(MAX_NODES - len(graph["nodes"])):
        graph["nodes"].append({"id": f"more{at}", "op": "identity", "inputs": [first], "attrs": {}, "params": {}})
        first = f"more{at}"
    graph["outputs"][0]["node"] = first
    assert len(parse(json.dumps(graph).encode()).nodes) == MAX_NODES
    with pytest.raises(UnprocessableError) as caught:
        room.training.create(ME, training_spec(model={"graph": graph}))
    assert caught.value.error_code == "invalid_graph"
    assert room.datasets.budget(ME, "cells").epsilon_reserved == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"privacy": None}, "privacy_required", id="private data without privacy"),
        pytest.param({"dataset": "open"}, "invalid_job", id="public data with privacy"),
        pytest.param({"surprise": 1}, "invalid_job", id="unknown field"),
        pytest.param({"loss": "eval"}, "invalid_job", id="unknown loss"),
        pytest.param({"loss": "mse"}, "invalid_job", id="mse towards classes"),
        pytest.param({"steps": 0}, "invalid_job", id="no steps"),
        pytest.param({"steps": 1 << 62}, "invalid_job", id="endless steps"),
        pytest.param({"steps": 1.5}, "invalid_job", id="half a step"),
        pytest.param({"sample_rate": 0.0}, "invalid_job", id="nobody sampled"),
        pytest.param({"sample_rate": 1.1}, "invalid_job", id="more than all sampled"),
        pytest.param({"sample_rate": float("nan")}, "invalid_job", id="rate not a number"),
        pytest.param({"privacy": {"epsilon": -1.0, "clip_norm": 1.0}}, "invalid_job", id="negative epsilon"),
        pytest.param({"privacy": {"epsilon": float("nan"), "clip_norm": 1.0}}, "invalid_job", id="epsilon nan"),
        pytest.param({"privacy": {"epsilon": 1.0, "clip_norm": float("inf")}}, "invalid_job", id="no clipping"),
        pytest.param({"privacy": {"epsilon": 1.0}}, "invalid_job", id="no clipping norm"),
        pytest.param({"optimizer": {"name": "sgd"}}, "invalid_job", id="no learning rate"),
        pytest.param({"optimizer": {"name": "lion", "learning_rate": 1.0}}, "invalid_job", id="unknown optimizer"),
        pytest.param({"optimizer": {"name": "gd", "learning_rate": 1.0}}, "invalid_job", id="gd with a rate"),
        pytest.param(
            {"optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.9}}, "invalid_job", id="sgd with momentum"
        ),
        pytest.param({"model": {}}, "invalid_job", id="no model"),
        pytest.param({"model": {"graph": small_graph(), "name": "m"}}, "invalid_job", id="two models"),
        pytest.param({"model": {"graph": small_graph(inputs=3)}}, "invalid_job", id="other inputs"),
        pytest.param({"model": {"graph": small_graph(outputs=3)}}, "invalid_job", id="other outputs"),
        pytest.param({"model": {"graph": small_graph(op="exec")}}, "operation_not_allowed", id="unknown operation"),
        pytest.param({"model": {"graph": small_graph(op="batch_norm1d")}}, "layer_not_private", id="batch norm"),
        pytest.param({"into": "../x"}, "invalid_name", id="name with a path"),
        pytest.param({"into": "globex~x"}, "invalid_name", id="another tenant's name"),
    ],
)
def test_a_declaration_is_refused_and_nothing_happens(
    room: TrainingRoom, changes: dict[str, object], code: str
) -> None:
    for attempt in (room.training.plan, room.training.create):
        with pytest.raises(UnprocessableError) as caught:
            attempt(ME, training_spec(**changes))
        assert caught.value.error_code == code
    assert nothing_happened(room)


def test_batch_norm_is_refused_by_name_with_the_alternative(room: TrainingRoom) -> None:
    with pytest.raises(UnprocessableError) as caught:
        room.training.create(ME, training_spec(model={"graph": small_graph(op="batch_norm1d")}))
    assert caught.value.details["node"] == "n"
    assert "group_norm" in str(caught.value.details["alternative"])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"dataset": "never"}, id="no such dataset"),
        pytest.param({"dataset": "globex~cells"}, id="a foreign dataset that is not there"),
        pytest.param({"dataset": "nobody~cells"}, id="a tenant that is not there"),
        pytest.param({"model": {"name": "never"}}, id="no such model"),
        pytest.param({"model": {"name": "globex~never"}}, id="a foreign model that is not there"),
    ],
)
def test_what_is_not_there_is_refused_alike(room: TrainingRoom, changes: dict[str, object]) -> None:
    for attempt in (room.training.plan, room.training.create):
        with pytest.raises(NotFoundError) as caught:
            attempt(ME, training_spec(**changes))
        assert caught.value.message == "there is no such object, or you may not see it"
    assert nothing_happened(room)


def test_another_tenant_sees_and_does_nothing(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    stranger = tenant_caller(GLOBEX)
    attempts: list[Callable[[str], object]] = [
        lambda job_id: room.training.get(stranger, job_id),
        lambda job_id: room.training.cancel(stranger, job_id),
        lambda job_id: room.training.logs(stranger, job_id, PageRequest()),
    ]
    for attempt in attempts:
        for job_id in (job.id, "job_never"):
            with pytest.raises(NotFoundError) as caught:
                attempt(job_id)
            assert (caught.value.message, caught.value.details) == (
                "there is no such object, or you may not see it",
                {},
            )
    with pytest.raises(NotFoundError):
        room.training.create(stranger, training_spec(dataset="acme~cells"))
    assert room.training.list(stranger, PageRequest()).items == []
    assert room.training.get(ME, job.id).state == "queued"


@pytest.mark.parametrize("action", [Action.JOB_CREATE, Action.DATASET_TRAIN, Action.MODEL_CREATE])
def test_creating_a_job_needs_three_rights(room: TrainingRoom, action: Action) -> None:
    room.authorizer.rule = all_but(action)
    with pytest.raises(ForbiddenError):
        room.training.create(ME, training_spec())
    room.authorizer.rule = lambda _caller, _action, _ref: True
    assert nothing_happened(room)


def test_policy_is_asked_before_the_declaration_is_read(room: TrainingRoom) -> None:
    room.authorizer.rule = all_but(Action.JOB_PLAN)
    with pytest.raises(ForbiddenError):
        room.training.plan(ME, {"nonsense": 1})


def test_jobs_are_listed_newest_first_in_pages(room: TrainingRoom) -> None:
    made = []
    for _ in range(3):
        made.append(room.training.create(ME, training_spec(dataset="open", privacy=None)).id)
        room.clock.advance(1)
    first = room.training.list(ME, PageRequest(limit=2))
    second = room.training.list(ME, PageRequest(limit=2, cursor=first.next_cursor))
    assert [job.id for job in (*first.items, *second.items)] == made[::-1]
