"""A dataset becomes visible when every cell was checked, with its budget; before that it is not there."""

import contextlib
import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from fakes.core import GLOBEX, tenant_caller
from fakes.rooms import DataRoom
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.errors import (
    ConflictError,
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.limits import UPLOAD_EXPIRY_S
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.uploads.rows import Upload

PRIVATE: dict[str, Any] = {
    "name": "cells",
    "format": "csv",
    "schema": {
        "columns": [
            {"name": "size", "type": "float", "min": 0.0, "max": 10.0},
            {"name": "label", "type": "category", "categories": ["no", "yes"]},
        ],
        "target": "label",
    },
    "privacy": {"visibility": "private", "unit": "row", "n_public": 100, "budget": {"epsilon": 2.5, "delta": 1e-5}},
}
PUBLIC = {**PRIVATE, "name": "open", "privacy": {"visibility": "public", "reason": "published in a paper"}}
ROWS = b"size,label\n1.5,yes\n2.5,no\n"
SECRET = b"size,label\n1.5,yes\n98765.4321,no\n"
ME = tenant_caller()
TEXT = "there is no such object, or you may not see it"


def all_but(action: Action) -> Callable[[Caller, Action, ResourceRef], bool]:
    return lambda _caller, asked, _ref: asked is not action


def same_refusal(error: pytest.ExceptionInfo[NotFoundError]) -> tuple[str, str, object]:
    return error.value.error_code, error.value.message, error.value.details


def test_a_private_dataset_opens_its_budget_when_it_becomes_visible(
    room: DataRoom, events: Callable[[], list[tuple[str, str]]]
) -> None:
    upload = room.send(PRIVATE, ROWS)
    assert room.datasets.resolve(ME, "cells").is_missing
    dataset = room.datasets.complete(ME, upload.id)
    assert (dataset.name, dataset.state, dataset.format) == ("cells", "ready", "csv")
    budget = room.datasets.budget(ME, "cells")
    assert (budget.epsilon, budget.delta, budget.epsilon_spent, budget.charges) == (2.5, 1e-5, 0.0, ())
    assert events() == [("dataset:create", "intent"), ("dataset:create", "done")]
    assert b"".join(room.datasets.open_rows(dataset.owner, dataset.id)) == ROWS


def test_the_log_says_why_a_public_dataset_is_public(room: DataRoom, recorded: Callable[[], str]) -> None:
    room.add(PUBLIC, ROWS)
    assert "published in a paper" in recorded()
    with pytest.raises(UnprocessableError) as caught:
        room.datasets.budget(ME, "open")
    assert caught.value.error_code == "no_budget"


def test_lists_are_in_order_and_budgets_only_of_private_ones(room: DataRoom) -> None:
    room.add(PUBLIC, ROWS)
    room.add(PRIVATE, ROWS)
    room.send({**PRIVATE, "name": "unfinished"}, ROWS)
    first = room.datasets.list(ME, PageRequest(limit=1))
    assert [item.name for item in first.items] == ["cells"]
    second = room.datasets.list(ME, PageRequest(limit=1, cursor=first.next_cursor))
    assert ([item.name for item in second.items], second.next_cursor) == (["open"], None)
    assert [budget.dataset for budget in room.datasets.budgets(ME, PageRequest()).items] == ["cells"]


def test_other_bytes_than_were_declared_leave_nothing_behind(
    room: DataRoom, events: Callable[[], list[tuple[str, str]]]
) -> None:
    begun = room.datasets.create(ME, PRIVATE, len(ROWS), hashlib.sha256(b"other rows").hexdigest())
    room.uploads.put_part(ME, begun.upload.id, 0, ROWS, hashlib.sha256(ROWS).digest())
    with pytest.raises(UnprocessableError) as caught:
        room.datasets.complete(ME, begun.upload.id)
    assert caught.value.error_code == "digest_mismatch"
    assert events()[-1] == ("dataset:create", "failed")
    room.add(PRIVATE, ROWS)  # the name is free


def test_a_bad_cell_leaves_nothing_behind(
    room: DataRoom, events: Callable[[], list[tuple[str, str]]], recorded: Callable[[], str]
) -> None:
    upload = room.send(PRIVATE, SECRET)
    with pytest.raises(UnprocessableError) as caught:
        room.datasets.complete(ME, upload.id)
    assert caught.value.error_code == "bad_cell"
    assert caught.value.details == {"row": 2, "column": "size", "reason": "outside the declared bounds"}
    assert "98765" not in caught.value.message
    assert events()[-1] == ("dataset:create", "failed")
    assert "98765" not in recorded()
    assert room.recorder.events[-1].facts == {"upload": upload.id, "code": "bad_cell"}
    assert (ME.tenant, upload.object_id) not in room.sealer.keys
    with pytest.raises(IntegrityError):
        list(room.artifacts.read(ME.tenant, upload.object_id, 1, Purpose.DATASET))
    room.add(PRIVATE, ROWS)  # the name is free for the mended file


def test_a_name_is_taken_once_and_only_by_what_is_ready(room: DataRoom) -> None:
    abandoned = room.send(PRIVATE, ROWS)
    room.add(PRIVATE, ROWS)
    with pytest.raises(ConflictError) as caught:
        room.send(PRIVATE, ROWS)
    assert caught.value.error_code == "name_taken"
    with pytest.raises(ConflictError) as caught:
        room.datasets.complete(ME, abandoned.id)
    assert caught.value.error_code == "upload_ended"
    assert (ME.tenant, abandoned.object_id) not in room.sealer.keys


def _expire(room: DataRoom, _upload: Upload) -> None:
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    assert room.upload_endings.expire() == 1


OTHER = tenant_caller(name="other")
ENDS: dict[str, tuple[bytes, Callable[[DataRoom, Upload], object], str, dict[str, str], TenantCaller | None]] = {
    "completed": (ROWS, lambda room, upload: room.datasets.complete(ME, upload.id), "done", {}, ME),
    "refused": (
        SECRET,
        lambda room, upload: room.datasets.complete(ME, upload.id),
        "failed",
        {"code": "bad_cell"},
        ME,
    ),
    "given up": (
        ROWS,
        lambda room, upload: room.uploads.abort(ME, upload.id),
        "abandoned",
        {"reason": "given_up"},
        ME,
    ),
    "its name taken by another": (
        ROWS,
        lambda room, upload: room.send(PRIVATE, ROWS, OTHER),
        "abandoned",
        {"reason": "deleted"},
        OTHER,
    ),
    "expired": (ROWS, _expire, "expired", {}, None),
}


@pytest.mark.parametrize(("data", "end", "outcome", "facts", "by"), ENDS.values(), ids=ENDS.keys())
def test_each_declaration_ends_in_the_log_as_it_ends_in_the_registry(
    room: DataRoom,
    data: bytes,
    end: Callable[[DataRoom, Upload], object],
    outcome: str,
    facts: dict[str, str],
    by: TenantCaller | None,
) -> None:
    upload = room.send(PRIVATE, data)
    with contextlib.suppress(UnprocessableError):
        end(room, upload)
    mine = [event for event in room.recorder.events if event.facts.get("upload") == upload.id]
    assert [(event.action, event.outcome) for event in mine] == [
        ("dataset:create", "intent"),
        ("dataset:create", outcome),
    ]
    assert mine[1].facts.items() >= facts.items()
    assert mine[1].actor == by
    assert ((ME.tenant, upload.object_id) in room.sealer.keys) == (outcome == "done")
    if outcome != "done":
        room.upload_endings.expire()
        assert list(room.blobs.keys(f"{ME.tenant}/{upload.object_id}")) == []


def test_what_is_not_complete_cannot_be_read_trained_on_or_deleted(room: DataRoom) -> None:
    room.send(PRIVATE, ROWS)
    for attempt in (
        room.datasets.get,
        room.datasets.resolve_for_training,
        room.datasets.delete,
        room.datasets.budget,
    ):
        with pytest.raises(NotFoundError) as caught:
            attempt(ME, "cells")
        assert same_refusal(caught) == ("not_found", TEXT, {})


def test_foreign_is_refused_like_missing(room: DataRoom) -> None:
    room.add(PRIVATE, ROWS)
    stranger = tenant_caller(GLOBEX)
    for name in ("acme~cells", "acme~never", "nobody~cells", "cells", "~cells", "acme~"):
        for attempt in (room.datasets.get, room.datasets.resolve_for_training, room.datasets.delete):
            with pytest.raises(NotFoundError) as caught:
                attempt(stranger, name)
            assert same_refusal(caught) == ("not_found", TEXT, {})
    assert room.datasets.get(ME, "cells").state == "ready"


def test_another_principal_cannot_complete_an_upload(room: DataRoom) -> None:
    upload = room.send(PRIVATE, ROWS)
    with pytest.raises(NotFoundError):
        room.datasets.complete(tenant_caller(name="other"), upload.id)
    assert room.datasets.complete(ME, upload.id).state == "ready"


def test_an_upload_of_something_else_is_no_dataset(room: DataRoom) -> None:
    data = b"0123456789"
    with room.database.tenant(ME.tenant, by=ME) as tx:
        upload = room.uploads.begin(
            tx,
            caller=ME,
            object_id=ObjectId("mdl_1"),
            kind=Kind.MODEL,
            version=1,
            purpose=Purpose.WEIGHTS,
            size_bytes=len(data),
            sha256="84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882",
        )
    room.uploads.put_part(
        ME, upload.id, 0, data, bytes.fromhex("84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882")
    )
    with pytest.raises(NotFoundError):
        room.datasets.complete(ME, upload.id)


def test_deleting_destroys_the_key_and_keeps_the_ledger(room: DataRoom) -> None:
    dataset_id = ObjectId(room.add(PRIVATE, ROWS))
    epoch = room.epoch.number
    room.datasets.delete(ME, "cells")
    assert room.epoch.number == epoch + 1
    assert (ME.tenant, dataset_id) not in room.sealer.keys
    with pytest.raises(IntegrityError):
        list(room.datasets.open_rows(ME.tenant, dataset_id))
    with room.database.tenant(ME.tenant, by=System(reason="test"), read_only=True) as tx:
        assert room.ledger.view(tx, dataset_id).epsilon == 2.5
    with pytest.raises(NotFoundError):
        room.datasets.get(ME, "cells")


def test_policy_is_asked_first_and_with_the_right_action(room: DataRoom) -> None:
    room.add(PRIVATE, ROWS)
    calls: dict[Action, Callable[[], object]] = {
        Action.DATASET_CREATE: lambda: room.datasets.create(ME, {"nonsense": 1}, 0, ""),
        Action.DATASET_LIST: lambda: room.datasets.list(ME, PageRequest()),
        Action.DATASET_READ: lambda: room.datasets.get(ME, "cells"),
        Action.DATASET_TRAIN: lambda: room.datasets.resolve_for_training(ME, "cells"),
        Action.DATASET_DELETE: lambda: room.datasets.delete(ME, "cells"),
        Action.BUDGET_READ: lambda: room.datasets.budget(ME, "cells"),
    }
    for action, call in calls.items():
        room.authorizer.rule = all_but(action)
        with pytest.raises(ForbiddenError):
            call()
    room.authorizer.rule = lambda _caller, _asked, _ref: True
    assert room.datasets.get(ME, "cells").name == "cells"


def test_policies_see_the_name_that_is_declared(room: DataRoom) -> None:
    room.datasets.complete(ME, room.send(PRIVATE, ROWS).id)
    asked = [name for action, name in room.authorizer.names if action is Action.DATASET_CREATE]
    assert asked == ["cells", "cells"], "when it is declared, and again when its bytes are there"
    room.authorizer.rule = all_but(Action.DATASET_CREATE)
    for declaration, seen in (({"name": "n" * 500}, "n" * 64), ({"name": 7}, "7"), ({}, ""), ("text", "")):
        with pytest.raises(ForbiddenError):
            room.datasets.create(ME, declaration, 1, "0" * 64)
        assert room.authorizer.names[-1] == (Action.DATASET_CREATE, seen)


def test_a_bad_declaration_allocates_nothing(room: DataRoom) -> None:
    declared = copy.deepcopy(PRIVATE)
    declared["privacy"]["budget"]["epsilon"] = 1e9
    with pytest.raises(UnprocessableError) as caught:
        room.datasets.create(ME, declared, 10, "0" * 64)
    assert caught.value.error_code == "invalid_dataset"
    with pytest.raises(UnprocessableError) as caught:
        room.datasets.create(ME, {**PRIVATE, "name": "../x"}, 10, "0" * 64)
    assert caught.value.error_code == "invalid_name"
    assert room.sealer.keys == set()
    assert room.recorder.events == []


def test_how_many_rows_there_are_is_said_nowhere(room: DataRoom) -> None:
    # Two datasets that differ in nothing but their number of rows look the same.
    shown = []
    for name, rows in (("few", 2), ("many", 40)):
        room.add({**PRIVATE, "name": name}, b"size,label\n" + b"1.5,yes\n" * rows)
        dataset = room.datasets.get(ME, name)
        shown.append((dataset.format, dataset.schema, dataset.privacy, dataset.state, dataset.created_at))
    assert shown[0] == shown[1]
