"""What a job, an error, a list or a log could tell of private rows: nothing. The family *Leakage by design*."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.errors import APIError, InvalidRequestError, JobFailedError
from services.house import GRAPH, PRIVATE, SCHEMA, House, job

pytestmark = pytest.mark.e2e

MARKED = "0.123456789"
COUNT = 71
ROWS = b"a,b,kind\n" + b"".join(
    f"{MARKED},{at / COUNT:.7f},{'yes' if at % 2 else 'no'}\n".encode() for at in range(COUNT)
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("leakage")))
    house.acme.clients["developer"].datasets.upload_csv("secret", ROWS, schema=SCHEMA, privacy=PRIVATE)
    yield house
    house.close()


def everything_said(house: House, job_id: str) -> str:
    """Return all that the API says of a job, its dataset and its budget."""
    with house.http(house.acme.admin) as http:
        paths = [
            *(
                f"/v1/jobs/{job_id}",
                f"/v1/jobs/{job_id}/logs?limit=200",
                "/v1/jobs",
                "/v1/datasets",
                "/v1/datasets/secret",
            ),
            *("/v1/budgets/secret", "/v1/budgets", "/v1/audit/entries?limit=200", "/v1/models"),
        ]
        return "\n".join(http.get(path).text for path in paths)


def assert_silent(text: str) -> None:
    assert MARKED not in text
    assert "loss" not in re.sub(r'"loss"\s*:\s*"cross_entropy"', "", text).replace("cross_entropy", "")
    assert "accuracy" not in text
    assert "gradient" not in text
    numbers = {int(number) for number in re.findall(r"(?<![\d.\w])\d+(?![\d.\w])", text)}
    assert COUNT not in numbers, "the true number of rows is shown"


def test_a_job_that_runs_tells_steps_and_epsilon_and_no_more(house: House) -> None:
    app = house.acme.clients["developer"]
    done = app.jobs.wait(app.jobs.create(job(dataset="secret", into="quiet", steps=6)).id)
    assert done.state == "succeeded"
    assert_silent(everything_said(house, done.id))
    provenance = app.models.version("quiet", 1).provenance
    assert provenance["privacy"]["n_public"] == PRIVATE["n_public"]
    assert_silent(json.dumps(provenance))


def test_a_job_that_fails_tells_a_code_and_no_words_of_its_own(house: House) -> None:
    app = house.acme.clients["developer"]
    mixing = job(dataset="secret", into="mixed", privacy={"epsilon": 0.5, "clip_norm": 1.0})
    mixing["model"] = {"graph": over_the_batch(GRAPH)}
    started = app.jobs.create(mixing)
    with pytest.raises(JobFailedError) as caught:
        app.jobs.wait(started.id)
    error = caught.value.job.error
    assert error is not None
    assert error.code == "batch_coupled"
    assert_silent(everything_said(house, started.id))


def over_the_batch(graph: dict[str, Any]) -> dict[str, Any]:
    """Return a graph whose last operation looks at all records together."""
    changed: dict[str, Any] = json.loads(json.dumps(graph))
    changed["nodes"].append({"id": "mixed", "op": "softmax", "inputs": ["linear"], "attrs": {"dim": 0}, "params": {}})
    changed["outputs"][0]["node"] = "mixed"
    return changed


def test_a_bad_cell_is_named_to_its_owner_and_not_in_the_log(house: House) -> None:
    app = house.acme.clients["developer"]
    bad = ROWS.replace(MARKED.encode(), b"0.777", 1).replace(b"yes", b"maybe", 1)
    with pytest.raises(InvalidRequestError) as caught:
        app.datasets.upload_csv("bad", bad, schema=SCHEMA, privacy=PRIVATE)
    assert caught.value.details["row"] == 2
    assert "maybe" not in str(caught.value)
    with house.http(house.acme.admin) as http:
        log = http.get("/v1/audit/entries", params={"limit": "200"}).text
    assert "maybe" not in log
    assert '"row"' not in log


def test_rows_cannot_be_downloaded_by_any_route(house: House) -> None:
    with house.http(house.acme.admin) as http:
        document = http.get("/v1/openapi.json").json()
        for path, methods in document["paths"].items():
            if "dataset" in path and "get" in methods:
                assert "application/octet-stream" not in json.dumps(methods["get"])
        for path in ("/v1/datasets/secret/rows", "/v1/datasets/secret/download", "/v1/datasets/secret/data"):
            assert http.get(path).status_code == 404


def test_nobody_trains_on_the_private_rows_without_a_budget(house: House) -> None:
    app = house.acme.clients["developer"]
    with pytest.raises(APIError) as caught:
        app.jobs.create(job(dataset="secret", privacy=None))
    assert caught.value.code == "privacy_required"


def test_the_size_of_what_is_stored_tells_no_more_than_the_upload_did(house: House) -> None:
    # Lengths are visible, as the page on the sealed format says; the number of rows is not stored anywhere in clear.
    content = (house.made.data / "platform.db").read_bytes()
    assert MARKED.encode() not in content
    for blob in (house.made.data / "blobs").rglob("*"):
        if blob.is_file():
            assert MARKED.encode() not in blob.read_bytes()
