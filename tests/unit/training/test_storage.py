"""What training takes of a tenant's storage: set aside before it begins, given back when it is no longer there."""

from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import tenant_caller
from fakes.rooms import (
    CELLS,
    ScriptedRunner,
    TrainingRoom,
    ask,
    cells,
    hear_brief,
    honest,
    send_checkpoint,
    training_spec,
)
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.core.limits import MIB, TenantLimits
from modelkeep_platform.jobs.queue import JobState
from modelkeep_platform.storage.tables.datasets import datasets
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.training.endings import LEFTOVERS_S
from modelkeep_platform.uploads.usage import check_room, stored_bytes
from modelkeep_platform.workers.channel_sync import SyncChannel

ME = tenant_caller()
PARAMETERS = 4 * (2 * 2 + 2)
ROWS = len(cells())


def declared(room: TrainingRoom, table: sa.Table, column: sa.ColumnElement[Any]) -> int:
    """Return how many bytes stand in a column."""
    with room.database.platform(read_only=True) as tx:
        row = tx.first(
            sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(column)), 0).label("n")).select_from(table)
        )
    assert row is not None
    return int(row["n"])


def stored(room: TrainingRoom, principal: str | None = None) -> dict[str, int]:
    with room.database.tenant(ME.tenant, by=System(reason="test"), read_only=True) as tx:
        return stored_bytes(tx, principal)


def keeps_a_checkpoint_and_dies(channel: SyncChannel) -> None:
    hear_brief(channel)
    for number in range(2):
        ask(channel, number, 1)
    send_checkpoint(channel, 2)


def test_datasets_count_while_they_are_there(room: TrainingRoom) -> None:
    first = stored(room)
    specs = declared(room, datasets, datasets.c.spec)
    assert first == {"models": 0, "datasets": 2 * ROWS + specs, "uploads": 0, "jobs": 0}
    upload = room.send({**CELLS, "name": "more"}, cells())
    assert stored(room)["uploads"] == ROWS
    room.datasets.delete(ME, "cells")
    assert stored(room)["datasets"] == ROWS + declared(room, datasets, datasets.c.spec)
    room.uploads.abort(ME, upload.id)
    assert stored(room)["uploads"] == 0


def test_what_one_account_made_is_counted_by_itself_and_bounded(room: TrainingRoom) -> None:
    other = tenant_caller(name="another")
    assert other.principal != ME.principal
    room.run(honest)
    room.training.create(ME, training_spec(into="second"))
    room.send({**CELLS, "name": "more"}, cells())
    assert stored(room, ME.principal) == stored(room)
    assert all(stored(room).values())
    assert not any(stored(room, other.principal).values())
    used = sum(stored(room).values())
    with room.database.tenant(ME.tenant, by=System(reason="test")) as tx:
        for principal, limits, whose in (
            (ME.principal, TenantLimits(principal_storage_mib=0), "this account's"),
            (other.principal, TenantLimits(storage_mib=0), "this tenant's"),
        ):
            with pytest.raises(ConflictError, match=whose) as caught:
                check_room(tx, wanted_bytes=1, limits=limits, principal=principal)
            assert (caught.value.error_code, caught.value.details["used_bytes"]) == ("storage_exhausted", used)
        check_room(tx, wanted_bytes=MIB, limits=TenantLimits(principal_storage_mib=1), principal=other.principal)
        with pytest.raises(ConflictError):
            check_room(tx, wanted_bytes=MIB, limits=TenantLimits(principal_storage_mib=1), principal=ME.principal)


def test_declarations_that_were_given_up_do_not_pile_up(room: TrainingRoom) -> None:
    before, keys = stored(room), len(room.sealer.keys)
    for number in range(5):
        room.uploads.abort(ME, room.send({**CELLS, "name": f"given-up-{number}"}, cells()).id)
    waiting = room.send({**CELLS, "name": "waits"}, cells())
    with room.database.platform(read_only=True) as tx:
        assert [row["name"] for row in tx.all(sa.select(datasets.c.name).order_by(datasets.c.name))] == [
            "cells",
            "open",
            "waits",
        ]
    assert len(room.sealer.keys) == keys + 1
    assert room.datasets.complete(ME, waiting.id).name == "waits"
    assert stored(room)["datasets"] > before["datasets"] + ROWS


@pytest.mark.parametrize(("every", "times"), [(None, 2), (2, 3)])
def test_a_job_sets_aside_its_result_and_its_checkpoints(room: TrainingRoom, every: int | None, times: int) -> None:
    room.training.create(ME, training_spec(checkpoint_every=every))
    assert stored(room)["jobs"] == times * PARAMETERS + declared(room, jobs, jobs.c.payload)
    assert declared(room, jobs, jobs.c.payload) > 0


def test_a_job_that_succeeds_becomes_a_version(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    room.dispatcher(ScriptedRunner(honest)).run_one()
    assert room.training.get(ME, job.id).state == "succeeded"
    found = stored(room)
    assert found["jobs"] == 0
    assert found["models"] > PARAMETERS


def test_a_queued_job_that_is_cancelled_gives_back_at_once(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    room.training.cancel(ME, job.id)
    assert stored(room)["jobs"] == 0
    assert declared(room, jobs, jobs.c.payload) == 0


def test_what_a_failed_job_left_behind_goes_after_a_day(room: TrainingRoom) -> None:
    room.training.create(ME, training_spec(checkpoint_every=2))
    dispatcher = room.dispatcher(ScriptedRunner(keeps_a_checkpoint_and_dies))
    dispatcher.run_one()
    blobs = room.blobs
    with room.database.platform(read_only=True) as tx:
        row = tx.first(sa.select(jobs.c.id, jobs.c.state))
    assert row is not None
    assert row["state"] == JobState.FAILED
    assert list(blobs.keys(f"{ME.tenant}/{row['id']}"))
    assert room.job_endings.clear_leftovers() == 0
    assert stored(room)["jobs"] == 3 * PARAMETERS
    room.clock.advance(LEFTOVERS_S + 1)
    assert room.job_endings.clear_leftovers() == 1
    assert list(blobs.keys(f"{ME.tenant}/{row['id']}")) == []
    assert stored(room)["jobs"] == 0
    assert room.job_endings.clear_leftovers() == 0


def test_a_job_that_does_not_fit_costs_nothing(room: TrainingRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    used = stored(room)["datasets"]
    monkeypatch.setattr(TenantLimits, "storage_bytes", used + 2 * PARAMETERS - 1)
    with pytest.raises(ConflictError) as caught:
        room.training.create(ME, training_spec())
    assert caught.value.error_code == "storage_exhausted"
    assert caught.value.details == {
        "limit_bytes": used + 2 * PARAMETERS - 1,
        "used_bytes": used,
        "wanted_bytes": 2 * PARAMETERS,
    }
    assert room.datasets.budget(ME, "cells").epsilon_reserved == 0.0
    monkeypatch.setattr(TenantLimits, "storage_bytes", used + 2 * PARAMETERS)
    room.training.create(ME, training_spec())
