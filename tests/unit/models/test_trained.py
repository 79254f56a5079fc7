"""Versions that jobs train: taken, stored, published and dropped; nobody sees one before it was published."""

from collections.abc import Iterator

import pytest
from sqlalchemy.exc import IntegrityError as DuplicateError

from fakes.core import ACME, tenant_caller
from fakes.graphs import encoded, weights_of
from fakes.registry import GRAPH, OTHER, WEIGHTS, ModelRoom, missed, refused
from modelkeep_platform.core.errors import IntegrityError, UnprocessableError
from modelkeep_platform.models.graph import parse

ME = tenant_caller()


def test_what_a_job_trained_is_there_when_it_was_published_and_not_before(room: ModelRoom) -> None:
    new = room.begin()
    assert (new.version, new.is_new_model) == (1, True)
    missed(lambda: room.models.get(ME, "cells"))
    made = room.trained.store(ACME, new, GRAPH, [WEIGHTS])
    missed(lambda: room.models.get(ME, "cells"))
    assert room.recorded() == []
    room.clock.advance(60)
    room.publish(made)
    version = room.models.get_version(ME, "cells", "1")
    assert version.provenance == {"source": "job", "job_id": "job_1", "dataset": "rows", "privacy": None}
    assert (version.created_by, version.weights_bytes) == ("principal-app", len(WEIGHTS))
    assert (version.created_at, version.state) == (room.clock.now_s(), "ready")
    assert b"".join(room.models.export_weights(ME, "cells", "1")[1]) == WEIGHTS
    assert room.recorded()[0] == ("model:create", "done", {"version": 1, "job": "job_1"})


def test_a_job_makes_one_version(room: ModelRoom) -> None:
    new = room.begin()
    for _ in range(2):
        with pytest.raises(DuplicateError):
            room.begin()
    made = room.trained.store(ACME, new, GRAPH, [WEIGHTS])
    room.publish(made)
    refused("deleted", lambda: room.publish(made))
    with pytest.raises(DuplicateError):
        room.begin()
    assert room.train(job="job_2") == 2


def test_what_a_job_began_is_dropped_with_a_model_that_was_its_own(room: ModelRoom) -> None:
    new = room.begin()
    room.trained.store(ACME, new, GRAPH, [WEIGHTS])
    room.drop()
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}
    assert (room.sealer.keys, list(room.blobs.keys(ACME)), room.recorded()) == (set(), [], [])
    room.drop()
    assert room.train() == 1


def test_what_a_job_began_is_dropped_and_the_versions_before_it_stay(room: ModelRoom) -> None:
    room.add(fill=1)
    made = room.trained.store(ACME, room.begin(), GRAPH, [WEIGHTS])
    room.drop()
    refused("deleted", lambda: room.publish(made))
    assert b"".join(room.models.export_weights(ME, "cells", "1")[1]) == weights_of(GRAPH, fill=1)
    assert {key.split("/")[2] for key in room.blobs.keys(f"{ACME}/{made.model_id}")} == {"1"}
    assert room.add().version == 3


def test_what_was_published_is_not_dropped(room: ModelRoom) -> None:
    room.train()
    room.drop()
    assert b"".join(room.models.export_weights(ME, "cells", "1")[1]) == WEIGHTS


def test_the_next_upload_clears_nothing_that_a_job_is_making(room: ModelRoom) -> None:
    new = room.begin()
    room.add("cells", fill=1)
    room.add("others")
    room.publish(room.trained.store(ACME, new, GRAPH, [WEIGHTS]))
    assert room.models.get(ME, "cells").latest_version == 2
    assert b"".join(room.models.export_weights(ME, "cells", "1")[1]) == WEIGHTS


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([], id="none"),
        pytest.param([b"\x80\x04pickled"], id="a pickle"),
        pytest.param([WEIGHTS[:-1]], id="too short"),
        pytest.param([WEIGHTS, b"!"], id="too long"),
        pytest.param([weights_of(parse(encoded(OTHER)))], id="another graph's"),
    ],
)
def test_what_a_job_sends_is_admitted_like_an_upload(room: ModelRoom, weights: list[bytes]) -> None:
    with pytest.raises(UnprocessableError):
        room.train(weights=weights)
    missed(lambda: room.models.get(ME, "cells"))


def test_a_model_deleted_while_it_was_trained_stays_deleted(room: ModelRoom) -> None:
    room.add()

    def deleting() -> Iterator[bytes]:
        yield WEIGHTS
        room.models.delete(ME, "cells")

    with pytest.raises(IntegrityError):
        room.train(weights=deleting())
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}


def test_a_model_deleted_before_its_version_is_published_stays_deleted(room: ModelRoom) -> None:
    made = room.trained.store(ACME, room.begin(), GRAPH, [WEIGHTS])
    room.models.delete(ME, "cells")
    refused("deleted", lambda: room.publish(made))
    assert room.rows() == {"models": 0, "model_versions": 0, "model_aliases": 0}
