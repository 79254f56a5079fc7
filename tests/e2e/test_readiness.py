"""Whether the server should get requests, over HTTP: each part that a request needs, broken and mended again."""

from collections.abc import Callable

import httpx
import pytest

from modelkeep_platform.app.ground import Ground
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.storage.blobs import StorageError
from modelkeep_platform.storage.database import Database
from services.house import House, wait_until

pytestmark = pytest.mark.e2e
INFER = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
Break = Callable[[House, pytest.MonkeyPatch], None]


def ready(house: House) -> httpx.Response:
    with house.http(None) as http:
        return http.get("/v2/health/ready")


def fails(*_args: object) -> None:
    raise StorageError("the disk is gone")


def the_epoch(house: House, patch: pytest.MonkeyPatch) -> None:
    """Let nobody read it."""
    patch.setattr(Database, "epoch", fails)


def the_log(house: House, patch: pytest.MonkeyPatch) -> None:
    """Let the entry of a prediction, which is committed after it, not be committed."""
    ground: Ground = house.server.platform.ground
    patch.setattr(ground.log, "_append", fails)
    with house.http(house.acme.clients["developer"]) as http:
        assert http.post("/v2/models/model/infer", json=INFER).status_code == 200


def the_root_key(house: House, patch: pytest.MonkeyPatch) -> None:
    """Have another in its place."""
    patch.setattr(house.server.platform.ground.keys, "_root", FileRootKey(SecretBytes(bytes(32))))


PARTS: dict[str, Break] = {
    "the policy epoch cannot be read": the_epoch,
    "the audit log takes no entries": the_log,
    "the root key cannot be used": the_root_key,
}


@pytest.mark.parametrize(("reason", "breaks"), PARTS.items(), ids=[breaks.__name__ for breaks in PARTS.values()])
def test_what_is_broken_takes_the_server_out_until_it_is_mended(
    house: House, monkeypatch: pytest.MonkeyPatch, reason: str, breaks: Break
) -> None:
    wait_until(lambda: ready(house).status_code == 200, "the server to be ready")
    try:
        with monkeypatch.context() as patch:
            breaks(house, patch)
            wait_until(lambda: ready(house).status_code != 200, "it to be noticed", timeout_s=20)
            answer, reasons = ready(house), house.server.platform.edge.health.reasons()
            with house.http(None) as http:
                alive = http.get("/v2/health/live")
    finally:
        wait_until(lambda: ready(house).status_code == 200, "the server to be ready again", timeout_s=20)
    assert (answer.status_code, answer.headers["x-error-code"]) == (503, "not_ready")
    assert answer.json() == {"error": "the server is not ready; its log says why"}
    assert reasons == (reason,)
    assert alive.status_code == 200, "it is not to be started anew"
