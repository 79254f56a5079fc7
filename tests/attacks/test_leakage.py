"""What a job, an error, a list, a log, a metric or a size could tell of private rows: nothing.

The family *Leakage by design*. Two tenants run the same job on rows that differ in values, labels and number, and not
in bytes: whatever the platform says of one, it says of the other. What a prediction tells, and the length of an upload,
are not hidden; the pages on threats and limitations say so.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from isolation.routes import code_of
from modelkeep.errors import InvalidRequestError, JobFailedError
from modelkeep.types import Job
from modelkeep_platform.telemetry.logs import JsonFormatter
from services.evidence import Evidence
from services.house import GRAPH, PRIVATE, SCHEMA, House, Tenant, job

pytestmark = pytest.mark.e2e

MARKED, OTHER = "0.123456789", "-0.987654321"
COUNT, FEWER = 71, 67
ROWS = b"a,b,kind\n" + b"".join(
    f"{MARKED},{at / COUNT:.7f},{'yes' if at % 2 else 'no'}\n".encode() for at in range(COUNT)
)


def as_long_as(whole: bytes) -> bytes:
    """Return other rows, fewer of them and all of one class, in as many bytes."""
    lines = [[OTHER, f"{-at / FEWER:.3f}", "yes"] for at in range(FEWER)]
    missing = len(whole) - len(b"a,b,kind\n") - sum(len(",".join(line)) + 1 for line in lines)
    for at in range(missing):
        lines[at % FEWER][1] += "0"
    return b"a,b,kind\n" + "".join(",".join(line) + "\n" for line in lines).encode()


class Lines(logging.Handler):
    """Keeps what the server writes of itself, as it writes it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("httpx"):  # the tests' own client
            self.text.append(self.format(record))


@dataclass(slots=True)
class Twins:
    """A platform on which both tenants ran the same job on their own rows `secret`."""

    house: House
    jobs: dict[str, Job]
    lines: str
    metrics: str

    @property
    def tenants(self) -> tuple[Tenant, Tenant]:
        return self.house.acme, self.house.globex


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    house = House(Path(tmp_path_factory.mktemp("leakage")))
    lines, root = Lines(), logging.getLogger("modelkeep_platform")
    root.addHandler(lines)
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        started = {}
        for tenant, rows in ((house.acme, ROWS), (house.globex, as_long_as(ROWS))):
            app = tenant.clients["developer"]
            app.datasets.upload_csv("secret", rows, schema=SCHEMA, privacy=PRIVATE)
            started[tenant.slug] = app.jobs.create(job(dataset="secret", into="quiet", steps=6)).id
        jobs = {
            tenant.slug: tenant.clients["developer"].jobs.wait(started[tenant.slug])
            for tenant in (house.acme, house.globex)
        }
        metrics = generate_latest(house.server.platform.edge.metrics.registry).decode()
        yield Twins(house, jobs, "\n".join(lines.text), metrics)
    finally:
        root.removeHandler(lines)
        root.setLevel(level)
        house.close()


@pytest.fixture(scope="module")
def house(twins: Twins) -> House:
    return twins.house


@pytest.fixture(scope="module")
def evidence(house: House) -> Evidence:
    return Evidence(house)


def everything_said(house: House, job_id: str, tenant: Tenant | None = None) -> str:
    """Return all that the API says of a job, its dataset and its budget."""
    with house.http((tenant or house.acme).admin) as http:
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


def alike(text: str) -> str:
    """Return `text` without what differs between any two jobs: names of tenants, ids, times, digests, places."""
    text = re.sub(r"[a-z]{3,4}_[a-z2-7]{26}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}", "-", text)
    text = re.sub(r'"(\w+_at|at|time|index|entry|salt|leaf_hash|next_cursor)":("[^"]*"|\d+|null)', r'"\1":0', text)
    return text.replace("globex", "acme").replace("Globex", "Acme")


def test_a_job_that_runs_tells_steps_and_epsilon_and_no_more(twins: Twins) -> None:
    for tenant in twins.tenants:
        assert twins.jobs[tenant.slug].state == "succeeded"
        assert_silent(everything_said(twins.house, twins.jobs[tenant.slug].id, tenant))
        provenance = tenant.clients["developer"].models.version("quiet", 1).provenance
        assert provenance["privacy"]["n_public"] == PRIVATE["n_public"]
        assert_silent(json.dumps(provenance))


def test_what_is_said_of_a_job_does_not_depend_on_the_rows(twins: Twins) -> None:
    assert len(as_long_as(ROWS)) == len(ROWS)
    one, other = (
        alike(everything_said(twins.house, twins.jobs[tenant.slug].id, tenant)).splitlines() for tenant in twins.tenants
    )
    for left, right in zip(one, other, strict=True):
        assert sorted(re.split(r"(?<=[,{])", left)) == sorted(re.split(r"(?<=[,{])", right))


def test_neither_log_lines_nor_metrics_tell_of_rows(twins: Twins) -> None:
    assert '"event"' in twins.lines
    for text in (twins.lines, twins.metrics):
        for word in (MARKED, OTHER, MARKED[2:8], OTHER[3:9], "loss", "gradient", "accuracy", "norm"):
            assert word not in text, word
    ids = [id_of(tenant) for tenant in twins.tenants]
    # How often and how long differ; which series there are does not.
    series = [
        {
            re.sub(r" \S+$|le=\"[^\"]*\"", "", line).replace(one, "-")
            for line in twins.metrics.splitlines()
            if one in line
        }
        for one in ids
    ]
    assert series[0]
    assert series[0] == series[1]


def id_of(tenant: Tenant) -> str:
    found = tenant.admin.whoami().tenant
    assert found is not None
    return found.id


def test_sizes_follow_from_the_length_of_the_upload_alone(twins: Twins) -> None:
    root = twins.house.made.data / "blobs"
    sizes = [
        sorted(path.stat().st_size for path in (root / id_of(tenant)).rglob("*") if path.is_file())
        for tenant in twins.tenants
    ]
    assert sizes[0]
    assert sizes[0] == sizes[1]
    state = Evidence(twins.house).state()
    one, other = (row for row in state["datasets"] if "'secret'" in row)
    assert len(one) == len(other)


def test_a_prediction_tells_its_outputs_and_no_more(twins: Twins) -> None:
    asked = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]}]}
    with twins.house.http(twins.house.acme.admin) as http:
        answer = http.post("/v2/models/quiet/infer", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() <= {"model_name", "model_version", "id", "outputs"}
    (output,) = answer.json()["outputs"]
    assert output.keys() <= {"name", "shape", "datatype", "data"}
    assert len(output["data"]) == 2
    assert not {name for name in answer.headers if "time" in name or "batch" in name or "worker" in name}


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


def test_rows_cannot_be_downloaded_by_any_route(house: House, evidence: Evidence) -> None:
    with house.http(house.acme.admin) as http:
        document = http.get("/v1/openapi.json").json()
        for path, methods in document["paths"].items():
            if "dataset" in path and "get" in methods:
                assert "application/octet-stream" not in json.dumps(methods["get"])
        # There is no such path, which is said before anybody asks who calls.
        with evidence.strangers_counted(3, 404):
            answers = [http.get(f"/v1/datasets/secret/{what}") for what in ("rows", "download", "data")]
    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (404, "no_such_path")
        assert evidence.recorded(answer) == []


def test_nobody_trains_on_the_private_rows_without_a_budget(house: House, evidence: Evidence) -> None:
    with house.http(house.acme.clients["developer"]) as http, evidence.nothing_changes():
        answers = [http.post(path, json=job(dataset="secret", privacy=None)) for path in ("/v1/jobs", "/v1/job-plans")]
    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (422, "privacy_required")
        assert evidence.recorded(answer) == [("acme", "denied", "privacy_required")]


def test_the_size_of_what_is_stored_tells_no_more_than_the_upload_did(house: House) -> None:
    # Lengths are visible, as the page on the sealed format says; the number of rows is not stored anywhere in clear.
    content = (house.made.data / "platform.db").read_bytes()
    assert MARKED.encode() not in content
    for blob in (house.made.data / "blobs").rglob("*"):
        if blob.is_file():
            assert MARKED.encode() not in blob.read_bytes()
