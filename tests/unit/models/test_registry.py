"""The registry: versions never change and their numbers never come back, aliases move, refusals leave nothing."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX, tenant_caller
from fakes.faulty_blobs import Crash
from fakes.graphs import document, encoded, node, weights_of
from fakes.registry import GRAPH, LAYER, OTHER, WEIGHTS, ModelRoom, missed, refused
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import (
    ForbiddenError,
    IntegrityError,
)
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.limits import MAX_PART_BYTES, UPLOAD_EXPIRY_S
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.models.graph import parse
from modelkeep_platform.models.rows import READY, change_pending
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.models import model_versions, models
from modelkeep_platform.storage.transactions import System

ME = tenant_caller()


# --- upload -----------------------------------------------------------------------------------------


def test_a_version_is_there_when_it_was_admitted_and_not_before(room: ModelRoom) -> None:
    new = room.send(description="of cells")
    assert room.models.resolve(ME, "cells").is_missing
    assert room.models.list(ME, PageRequest()).items == []
    for call in (
        lambda: room.models.get(ME, "cells"),
        lambda: room.models.list_versions(ME, "cells", PageRequest()),
        lambda: room.models.get_version(ME, "cells", "1"),
        lambda: room.models.export_graph(ME, "cells", "1"),
        lambda: room.models.export_weights(ME, "cells", "1"),
        lambda: room.models.set_alias(ME, "cells", "production", 1),
        lambda: room.models.resolve_version(ME, "cells", None, Action.MODEL_PREDICT),
    ):
        missed(call)
    epoch = room.epoch.number
    made = room.admission.complete(ME, new.upload.id)
    assert room.epoch.number == epoch + 1
    assert (made.name, made.version, made.state, made.weights_bytes) == ("cells", 1, "ready", len(WEIGHTS))
    assert (made.graph_sha256, made.weights_sha256) == (GRAPH.sha256(), hashlib.sha256(WEIGHTS).hexdigest())
    assert (made.inputs, made.outputs) == (GRAPH.inputs, GRAPH.outputs)
    assert (made.created_at, made.created_by) == (room.clock.now_s(), ME.principal)
    assert made.provenance == {"source": "upload"}
    model = room.models.get(ME, "cells")
    assert (model.name, model.description, model.owner) == ("cells", "of cells", "acme")
    assert (model.latest_version, model.aliases) == (1, {})
    assert room.recorded() == [
        ("model:create", "intent", {"upload": new.upload.id, "version": 1}),
        ("model:create", "done", {"upload": new.upload.id, "version": 1}),
    ]


def test_numbers_grow_and_a_description_is_of_the_new_model(room: ModelRoom) -> None:
    room.admission.complete(ME, room.send(description="first" * 1000).upload.id)
    assert room.admission.complete(ME, room.send(description="second").upload.id).version == 2
    assert room.models.get(ME, "cells").description == ("first" * 1000)[:2000]
    assert room.models.get(ME, "cells").latest_version == 2
    assert room.rows() == {"models": 1, "model_versions": 2, "model_aliases": 0}


def test_a_later_upload_changes_nothing_of_an_earlier_version(room: ModelRoom) -> None:
    room.add(fill=1)
    first = room.models.get_version(ME, "cells", "1")
    room.add(fill=2)
    room.train(graph=GRAPH)
    assert room.models.get_version(ME, "cells", "1") == first
    assert b"".join(room.models.export_weights(ME, "cells", "1")[1]) == weights_of(GRAPH, fill=1)
    assert b"".join(room.models.export_weights(ME, "cells", "2")[1]) == weights_of(GRAPH, fill=2)


def test_weights_of_several_parts_are_admitted_by_their_header(room: ModelRoom) -> None:
    layer = {"in_features": 1 << 20, "out_features": 2, "bias": True}
    wide = document([node("linear", layer, "x0")], [(-1, 1 << 20)], (-1, 2))
    weights = weights_of(parse(encoded(wide)))
    new = room.send(weights=weights, graph=wide)
    assert new.upload.parts == -(-len(weights) // MAX_PART_BYTES) == 2
    assert room.admission.complete(ME, new.upload.id).weights_bytes == len(weights)
    assert b"".join(room.models.export_weights(ME, "cells", "1")[1]) == weights


@pytest.mark.parametrize(
    ("code", "name", "graph", "size", "digest"),
    [
        pytest.param("invalid_name", "../cells", LAYER, 10, "0" * 64, id="name"),
        pytest.param("invalid_name", "owner~cells", LAYER, 10, "0" * 64, id="name of another"),
        pytest.param("invalid_graph", "cells", {}, 10, "0" * 64, id="graph"),
        pytest.param("invalid_upload", "cells", LAYER, 0, "0" * 64, id="no bytes"),
        pytest.param("invalid_upload", "cells", LAYER, -1, "0" * 64, id="negative bytes"),
        pytest.param("invalid_upload", "cells", LAYER, 10, "0" * 63, id="digest"),
        pytest.param("too_large", "cells", LAYER, 1 << 60, "0" * 64, id="size"),
    ],
)
def test_what_cannot_be_allocates_nothing(
    room: ModelRoom, code: str, name: str, graph: object, size: int, digest: str
) -> None:
    refused(code, lambda: room.admission.create_version(ME, name, encoded(graph), size, digest))
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}
    assert room.sealer.keys == set()
    assert room.recorder.events == []


def test_refused_weights_leave_nothing_and_the_log_says_so(room: ModelRoom) -> None:
    new = room.send(weights=b"\x80\x04K\x01.")
    message = refused("pickle_refused", lambda: room.admission.complete(ME, new.upload.id))
    assert message.startswith("this is a pickle; ")
    assert room.recorded()[-1] == (
        "model:create",
        "failed",
        {"upload": new.upload.id, "version": 1, "code": "pickle_refused"},
    )
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}
    assert room.sealer.keys == set()
    assert room.stored(new.model_id) == 0
    refused("upload_ended", lambda: room.admission.complete(ME, new.upload.id))
    assert room.uploads.status(ME, new.upload.id).state == "aborted"


def test_a_refusal_costs_its_number_and_leaves_the_other_versions(room: ModelRoom) -> None:
    room.add()
    bad = room.send(weights=weights_of(parse(encoded(OTHER))))
    refused("invalid_weights", lambda: room.admission.complete(ME, bad.upload.id))
    assert {key.split("/")[2] for key in room.blobs.keys(f"{ACME}/{bad.model_id}")} == {"1"}
    assert [one.version for one in room.models.list_versions(ME, "cells", PageRequest()).items] == [1]
    assert room.add().version == 3


def test_another_digest_ends_the_upload(room: ModelRoom) -> None:
    new = room.admission.create_version(ME, "cells", encoded(LAYER), len(WEIGHTS), "0" * 64)
    room.uploads.put_part(ME, new.upload.id, 0, WEIGHTS, hashlib.sha256(WEIGHTS).digest())
    refused("digest_mismatch", lambda: room.admission.complete(ME, new.upload.id))
    assert room.recorded()[-1] == (
        "model:create",
        "failed",
        {"upload": new.upload.id, "version": 1, "code": "digest_mismatch"},
    )
    assert room.rows()["models"] == 0


def test_missing_parts_are_no_refusal(room: ModelRoom) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    new = room.admission.create_version(ME, "cells", encoded(LAYER), len(WEIGHTS), digest)
    refused("upload_incomplete", lambda: room.admission.complete(ME, new.upload.id))
    room.uploads.put_part(ME, new.upload.id, 0, WEIGHTS, bytes.fromhex(digest))
    assert room.admission.complete(ME, new.upload.id).version == 1
    refused("upload_ended", lambda: room.admission.complete(ME, new.upload.id))
    assert room.models.get(ME, "cells").latest_version == 1


def test_another_principal_cannot_complete_an_upload(room: ModelRoom) -> None:
    new = room.send()
    missed(lambda: room.admission.complete(tenant_caller(name="other"), new.upload.id))
    missed(lambda: room.admission.complete(tenant_caller(GLOBEX), new.upload.id))
    assert room.admission.complete(ME, new.upload.id).version == 1


def test_an_upload_of_something_else_is_no_version(room: ModelRoom) -> None:
    with room.database.tenant(ME.tenant, by=ME) as tx:
        upload = room.uploads.begin(
            tx,
            caller=ME,
            object_id=ObjectId("dat_1"),
            kind=Kind.DATASET,
            version=1,
            purpose=Purpose.DATASET,
            size_bytes=len(WEIGHTS),
            sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        )
    room.uploads.put_part(ME, upload.id, 0, WEIGHTS, hashlib.sha256(WEIGHTS).digest())
    missed(lambda: room.admission.complete(ME, upload.id))
    assert room.uploads.status(ME, upload.id).state == "open"


def test_what_was_given_up_or_expired_is_gone_with_the_upload(room: ModelRoom) -> None:
    for number in range(3):
        room.uploads.abort(ME, room.send(f"given-up-{number}").upload.id)
    room.send("late")
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    waiting = room.send("waits")
    assert room.upload_endings.expire() == 1
    assert room.rows() == {"models": 1, "model_versions": 1, "model_aliases": 0}
    assert len(room.sealer.keys) == 1
    assert room.admission.complete(ME, waiting.upload.id).version == 1


def test_a_registration_that_died_halfway_ends_with_its_upload(
    room: ModelRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_args: object, **_kwargs: object) -> bytes:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(room.sealer, "seal", die)
        with pytest.raises(Crash):
            room.send()
    assert room.rows()["model_versions"] == 1
    missed(lambda: room.models.get(ME, "cells"))
    room.clock.advance(UPLOAD_EXPIRY_S + 1)
    assert room.upload_endings.expire() == 1
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}
    assert room.sealer.keys == set()
    assert [outcome for _, outcome, _ in room.recorded()] == ["intent", "expired"]
    assert room.add().version == 1


def test_whoever_deletes_a_model_ends_the_uploads_of_others_to_it(room: ModelRoom) -> None:
    room.add()
    waiting = [room.send().upload.id for _ in range(2)]
    other = tenant_caller(name="other")
    room.recorder.events.clear()
    room.models.delete(other, "cells")
    assert sorted(room.recorded()[:2], key=str) == sorted(
        [
            ("model:create", "abandoned", {"upload": upload, "version": number, "reason": "deleted"})
            for number, upload in enumerate(waiting, start=2)
        ],
        key=str,
    )
    assert room.recorded()[2:] == [("model:delete", "done", {})]
    assert {event.actor for event in room.recorder.events} == {other}
    assert room.upload_endings.expire() == 2  # their bytes
    assert len(room.recorder.events) == 3


def test_giving_up_takes_no_model_that_had_another_number(room: ModelRoom) -> None:
    room.add()
    room.models.delete_version(ME, "cells", "1")
    room.uploads.abort(ME, room.send().upload.id)
    assert room.rows() == {"models": 1, "model_versions": 0, "model_aliases": 0}
    assert room.add().version == 3


def test_a_model_deleted_while_its_version_is_made_stays_deleted(
    room: ModelRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.add()
    seal = room.sealer.seal

    def deleting(*args: Any, **kwargs: Any) -> bytes:
        sealed = seal(*args, **kwargs)
        if kwargs["purpose"] is Purpose.GRAPH:
            room.models.delete(ME, "cells")
        return sealed

    monkeypatch.setattr(room.sealer, "seal", deleting)
    refused("deleted", room.send)
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}


def test_a_model_deleted_before_its_upload_is_complete_stays_deleted(room: ModelRoom) -> None:
    room.add()
    new = room.send()
    room.models.delete(ME, "cells")
    refused("upload_ended", lambda: room.admission.complete(ME, new.upload.id))
    assert room.rows()["model_versions"] == 0


# --- read -------------------------------------------------------------------------------------------


def test_pages_are_in_order_of_name_and_pass_over_what_is_not_there(room: ModelRoom) -> None:
    for name in ("d", "a", "c", "e"):
        room.add(name)
    for name in ("aa", "ab", "ac", "b", "z"):
        room.send(name)
    names: list[str] = []
    request = PageRequest(limit=2)
    while True:
        page = room.models.list(ME, request)
        names += [model.name for model in page.items]
        if page.next_cursor is None:
            break
        request = PageRequest(limit=2, cursor=page.next_cursor)
    assert names == ["a", "c", "d", "e"]


def test_pages_of_versions_are_newest_first(room: ModelRoom) -> None:
    for fill in range(12):
        room.add(fill=fill)
    numbers: list[int] = []
    request = PageRequest(limit=5)
    while True:
        page = room.models.list_versions(ME, "cells", request)
        numbers += [one.version for one in page.items]
        if page.next_cursor is None:
            break
        request = PageRequest(limit=5, cursor=page.next_cursor)
    assert numbers == list(range(12, 0, -1))


@pytest.mark.parametrize("cursor", ["wrI=", "eA==", "LTE=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk=", "é", "2aM="])
def test_a_cursor_that_was_not_given_out_is_refused(room: ModelRoom, cursor: str) -> None:
    room.add()
    request = PageRequest(cursor=cursor)
    refused("invalid_page", lambda: room.models.list_versions(ME, "cells", request))


def test_without_a_version_production_is_meant_or_the_newest(room: ModelRoom) -> None:
    room.add()
    room.add()

    def found(version: str | None) -> tuple[int, str]:
        servable = room.models.resolve_version(ME, "cells", version, Action.MODEL_PREDICT)
        return servable.version, servable.alias

    assert found(None) == (2, "")
    room.models.set_alias(ME, "cells", "production", 1)
    assert found(None) == (1, "production")
    assert found("production") == (1, "production")
    assert found("2") == (2, "")
    servable = room.models.resolve_version(ME, "acme~cells", "1", Action.MODEL_PREDICT)
    assert (servable.name, servable.graph, servable.weights_bytes) == ("cells", GRAPH, len(WEIGHTS))
    assert servable.decision.action is Action.MODEL_PREDICT


def test_a_version_that_is_not_there_looks_like_a_missing_model(room: ModelRoom) -> None:
    room.add()
    for version in ("3", "0", "-1", "99999999999999999999", "", "staging", "²", "1.0", "x" * 500):
        for name in ("cells", "never"):

            def attempt(name: str = name, version: str = version) -> object:
                return room.models.get_version(ME, name, version)

            missed(attempt)


def test_foreign_is_refused_like_missing(room: ModelRoom) -> None:
    room.add()
    room.models.set_alias(ME, "cells", "production", 1)
    stranger = tenant_caller(GLOBEX)
    for name in ("acme~cells", "acme~never", "nobody~cells", "cells", "~cells", "acme~"):
        for call in (
            lambda name=name: room.models.get(stranger, name),
            lambda name=name: room.models.list_versions(stranger, name, PageRequest()),
            lambda name=name: room.models.get_version(stranger, name, "1"),
            lambda name=name: room.models.export_graph(stranger, name, "production"),
            lambda name=name: room.models.export_weights(stranger, name, "1"),
            lambda name=name: room.models.set_alias(stranger, name, "production", 1),
            lambda name=name: room.models.delete_alias(stranger, name, "production"),
            lambda name=name: room.models.delete_version(stranger, name, "1"),
            lambda name=name: room.models.delete(stranger, name),
        ):
            missed(call)
    assert room.models.get(ME, "cells").aliases == {"production": 1}


def test_a_download_is_recorded_before_it_begins(room: ModelRoom) -> None:
    room.add()
    version, chunks = room.models.export_weights(ME, "cells", "1")
    assert room.recorded()[-1] == ("model:export", "done", {"version": 1})
    assert b"".join(chunks) == WEIGHTS
    assert version.weights_sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert room.models.export_graph(ME, "cells", "1") == GRAPH.to_json()
    assert b"".join(room.models.open_weights(ACME, version.model_id, 1)) == WEIGHTS


def test_a_graph_that_was_exchanged_in_the_database_is_found_out(room: ModelRoom) -> None:
    room.add()
    with room.database.platform() as tx:
        tx.execute(sa.update(model_versions).values(graph_sha256="0" * 64))
    with pytest.raises(IntegrityError) as caught:
        room.models.get_version(ME, "cells", "1")
    assert caught.value.error_code == "graph_mismatch"
    with room.database.platform() as tx:
        row = tx.first(sa.select(model_versions.c.graph_sealed))
        assert row is not None
        tx.execute(sa.update(model_versions).values(graph_sealed=row["graph_sealed"][:-1] + b"!"))
    with pytest.raises(IntegrityError):
        room.models.export_graph(ME, "cells", "1")


# --- change -----------------------------------------------------------------------------------------


def test_aliases_move_and_go(room: ModelRoom) -> None:
    room.add()
    room.add()
    epoch = room.epoch.number
    assert room.models.set_alias(ME, "cells", "production", 1).aliases == {"production": 1}
    assert room.models.set_alias(ME, "cells", "staging", 2).aliases == {"production": 1, "staging": 2}
    assert room.models.set_alias(ME, "cells", "production", 2).aliases == {"production": 2, "staging": 2}
    room.models.delete_alias(ME, "cells", "staging")
    assert room.models.get(ME, "cells").aliases == {"production": 2}
    assert room.epoch.number == epoch + 4
    assert room.recorded()[-2:] == [
        ("model:alias", "done", {"version": 2, "alias": "production"}),
        ("model:alias", "done", {"alias": "staging"}),
    ]
    missed(lambda: room.models.delete_alias(ME, "cells", "staging"))
    assert room.recorded()[-1][2] == {"alias": "staging"}


def test_an_alias_points_at_a_version_that_is_there(room: ModelRoom) -> None:
    room.add()
    room.send()
    for version in (2, 3, 0, -1, 1 << 40, 10**30, -(10**30)):

        def attempt(version: int = version) -> object:
            return room.models.set_alias(ME, "cells", "production", version)

        assert refused("no_such_version", attempt) == f"there is no version {version} to point at"


def test_an_alias_is_a_name_and_no_number(room: ModelRoom) -> None:
    room.add()
    for alias in ("1", "007", "", "Production", "a/b", "..", "x" * 65, "prod\n"):

        def attempt(alias: str = alias) -> object:
            return room.models.set_alias(ME, "cells", alias, 1)

        refused("invalid_name", attempt)
    assert room.models.get(ME, "cells").aliases == {}


def test_deleting_a_version_takes_its_aliases_and_bytes_and_never_gives_its_number_again(room: ModelRoom) -> None:
    room.add()
    made = room.add()
    room.models.set_alias(ME, "cells", "production", 2)
    room.models.set_alias(ME, "cells", "old", 1)
    room.models.delete_version(ME, "cells", "production")
    assert room.recorded()[-1] == ("model:delete", "done", {"version": 2})
    assert room.models.get(ME, "cells").aliases == {"old": 1}
    assert {key.split("/")[2] for key in room.blobs.keys(f"{ACME}/{made.model_id}")} == {"1"}
    missed(lambda: room.models.get_version(ME, "cells", "2"))
    assert room.add().version == 3
    assert room.models.get(ME, "cells").latest_version == 3


def test_a_model_whose_versions_are_deleted_is_not_shown_and_can_be_deleted(room: ModelRoom) -> None:
    room.add()
    room.models.delete_version(ME, "cells", "1")
    missed(lambda: room.models.get(ME, "cells"))
    assert room.models.list(ME, PageRequest()).items == []
    room.models.delete(ME, "cells")
    assert room.sealer.keys == set()
    assert room.rows()["models"] == 0


def test_deleting_a_model_destroys_its_key_and_its_bytes(room: ModelRoom) -> None:
    made = room.add()
    room.models.set_alias(ME, "cells", "production", 1)
    waiting = room.send()
    epoch = room.epoch.number
    room.models.delete(ME, "cells")
    assert room.epoch.number == epoch + 1
    assert room.recorded()[-1] == ("model:delete", "done", {})
    assert room.sealer.keys == set()
    assert room.stored(made.model_id) == 0
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}
    missed(lambda: room.models.get(ME, "cells"))
    refused("upload_ended", lambda: room.admission.complete(ME, waiting.upload.id))
    again = room.add()
    assert again.model_id != made.model_id


def test_what_vanishes_between_decision_and_reading_is_said_to_be_deleted(room: ModelRoom) -> None:
    room.add()
    decision = room.authorizer.require(ME, Action.MODEL_READ, room.models.resolve(ME, "cells"))
    room.models.delete(ME, "cells")
    refused("deleted", lambda: room.models._get(decision))
    model_id = decision.ref.object_id
    versions = Versions(database=room.database, sealer=room.sealer)
    refused("deleted", lambda: versions.show(ACME, model_id, 1))
    refused("deleted", lambda: versions.open_graph(ACME, model_id, 1))
    with room.database.tenant(ACME, by=System(reason="test")) as tx:
        refused("deleted", lambda: change_pending(tx, model_id, 1, state=READY))


def test_policy_is_asked_first_with_the_action_and_the_name(room: ModelRoom) -> None:
    room.add()
    new = room.send()
    calls: dict[Action, list[Callable[[], object]]] = {
        Action.MODEL_CREATE: [
            lambda: room.admission.create_version(ME, "cells", b"nonsense", 0, ""),
            lambda: room.admission.complete(ME, new.upload.id),
        ],
        Action.MODEL_LIST: [lambda: room.models.list(ME, PageRequest())],
        Action.MODEL_READ: [
            lambda: room.models.get(ME, "cells"),
            lambda: room.models.list_versions(ME, "cells", PageRequest()),
            lambda: room.models.get_version(ME, "cells", "1"),
        ],
        Action.MODEL_EXPORT: [
            lambda: room.models.export_graph(ME, "cells", "1"),
            lambda: room.models.export_weights(ME, "cells", "1"),
        ],
        Action.MODEL_ALIAS: [
            lambda: room.models.set_alias(ME, "cells", "no name", 9),
            lambda: room.models.delete_alias(ME, "cells", "production"),
        ],
        Action.MODEL_DELETE: [
            lambda: room.models.delete(ME, "cells"),
            lambda: room.models.delete_version(ME, "cells", "1"),
        ],
    }
    for action, attempts in calls.items():

        def rule(_caller: Caller, asked: Action, _ref: ResourceRef, action: Action = action) -> bool:
            return asked is not action

        room.authorizer.rule = rule
        for attempt in attempts:
            with pytest.raises(ForbiddenError):
                attempt()
            assert room.authorizer.asked[-1][0] is action
    room.authorizer.rule = lambda _caller, _asked, _ref: True
    assert room.admission.complete(ME, new.upload.id).version == 2


def test_a_model_belongs_to_one_tenant_and_names_do_not_meet(room: ModelRoom) -> None:
    stranger = tenant_caller(GLOBEX)
    mine = room.add(fill=1)
    theirs = room.add(fill=2, caller=stranger)
    assert mine.model_id != theirs.model_id
    assert b"".join(room.models.export_weights(stranger, "cells", "1")[1]) == weights_of(GRAPH, fill=2)
    room.models.delete(stranger, "cells")
    assert room.models.get(ME, "cells").latest_version == 1
    with room.database.tenant(GLOBEX, by=System(reason="test"), read_only=True) as tx:
        assert tx.all(tx.select(models)) == []
