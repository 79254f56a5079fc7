"""A disk that is broken or full: calls fail in the documented shape, and all is well after."""

import pytest

from faults.harness import World
from modelkeep.errors import APIError, ModelkeepError, NotFoundError, UploadInterruptedError
from services.crashing_server import BROKEN, NO_PAGES, NO_SPACE, NONE, SHORT, TORN
from services.house import GRAPH, WEIGHTS
from services.points import FAULT

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(NO_SPACE, id="no space"),
        pytest.param(BROKEN, id="EIO"),
        pytest.param(TORN, id="torn write"),
    ],
)
def test_what_cannot_be_written_is_refused_and_works_when_the_disk_does(world: World, fault: int) -> None:
    name = f"disk{fault}"
    world.zygote.page[FAULT] = fault
    with pytest.raises(UploadInterruptedError) as caught:
        world.once.models.upload(name, graph=GRAPH, weights=WEIGHTS)
    cause = caught.value.__cause__
    assert isinstance(cause, APIError)
    assert (cause.status, cause.code) == (503, "storage_failed")
    assert cause.request_id
    world.zygote.page[FAULT] = NONE
    with pytest.raises(NotFoundError):
        world.app.models.get(name)
    # Also where half of a part lies: it does not authenticate, and is replaced.
    world.once.uploads.resume(caught.value.upload_id, WEIGHTS)
    assert world.app.models.download(name).weights == WEIGHTS
    world.check()


def test_half_of_what_was_stored_is_never_shown(world: World) -> None:
    world.zygote.page[FAULT] = SHORT
    with pytest.raises(ModelkeepError):
        world.once.models.download("model")
    world.zygote.page[FAULT] = NONE
    world.check()


def test_a_full_database_refuses_and_recovers(world: World) -> None:
    world.zygote.page[FAULT] = NO_PAGES
    refused = None
    for n in range(40):
        try:
            world.once.models.upload(f"full{n}", graph=GRAPH, weights=WEIGHTS)
        except APIError as exc:
            refused = exc
            break
    world.zygote.page[FAULT] = NONE
    assert refused is not None
    assert (refused.status, refused.code) == (503, "disk_full")
    assert refused.request_id
    world.app.models.upload("space", graph=GRAPH, weights=WEIGHTS)
    assert world.app.models.download("space").weights == WEIGHTS
    world.check()
    world.verify_log()
