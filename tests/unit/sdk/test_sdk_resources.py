"""Resources: what is sent, and what comes back."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from fakes.sdk import FakeTime
from fakes.server import FakePlatform, answer_json, new_job, refusal
from modelkeep._core.flows import Sync
from modelkeep._core.progress import UploadProgress
from modelkeep.client import Nouns
from modelkeep.errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    ProtocolError,
    UploadInterruptedError,
)
from modelkeep.types import Dataset, Job, Limit, ModelVersion

GRAPH = {"format": "modelkeep.graph/1", "nodes": []}
PRIVACY = {"visibility": "public", "reason": "made up"}
DETAILS = {
    "id": "t",
    "slug": "acme",
    "name": "Acme",
    "state": "active",
    "created_at": 1,
    "limits": {"members": {"value": 3, "default": 1000, "own": True, "used": 4}},
}


def bodies(platform: FakePlatform, method: str, path: str) -> list[Any]:
    return [json.loads(request.content) for request in platform.sent(method, path)]


def test_whoami(client: Nouns[Sync]) -> None:
    who = client.whoami()
    assert who.tenant is not None
    assert (who.kind, who.tenant.slug, who.roles) == ("tenant", "acme", ["developer"])


def test_upload_sends_parts_with_digests_and_completes(client: Nouns[Sync], platform: FakePlatform) -> None:
    seen: list[UploadProgress] = []
    version = client.models.upload("tumour", graph=GRAPH, weights=b"0123456789abcdefXYZ", progress=seen.append)
    assert (version.name, version.version) == ("tumour", 1)
    assert platform.models["tumour"]["versions"][1]["weights"] == b"0123456789abcdefXYZ"
    assert [progress.sent_bytes for progress in seen] == [0, 8, 16, 19]
    assert {progress.total_bytes for progress in seen} == {19}
    (created,) = bodies(platform, "POST", "/v1/models/tumour/versions")
    assert created["graph"] == GRAPH
    assert created["weights_sha256"] == hashlib.sha256(b"0123456789abcdefXYZ").hexdigest()


def test_upload_takes_what_trace_gives(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.models.upload("tumour", SimpleNamespace(graph=GRAPH, weights=b"abc"))
    assert platform.models["tumour"]["versions"][1]["weights"] == b"abc"


def test_upload_reads_a_file_part_by_part(client: Nouns[Sync], platform: FakePlatform, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"0123456789abc")
    client.models.upload("tumour", graph=GRAPH, weights=path)
    assert platform.models["tumour"]["versions"][1]["weights"] == b"0123456789abc"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass what"),
        ({"graph": GRAPH}, "pass what"),
        ({"graph": GRAPH, "weights": b""}, "nothing to upload"),
        ({"graph": GRAPH, "weights": "/nowhere/at/all"}, "cannot be read"),
        ({"graph": GRAPH, "weights": 3}, "bytes or a path"),
        ({"graph": {"x": float("nan")}, "weights": b"abc"}, "written as JSON"),
    ],
    ids=["nothing", "no-weights", "empty", "no-file", "a-number", "nan"],
)
def test_upload_refuses_before_sending(
    client: Nouns[Sync], platform: FakePlatform, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        client.models.upload("tumour", **arguments)
    assert platform.requests == []


def test_an_interrupted_upload_resumes_with_what_is_missing(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(
        lambda request: refusal(503, "unavailable") if request.url.path.endswith("/parts/2") else None
    )
    data = bytes(range(30))
    with pytest.raises(UploadInterruptedError) as caught:
        client.models.upload("tumour", graph=GRAPH, weights=data)
    assert caught.value.upload_id == "up-1"
    platform.before.clear()
    platform.requests.clear()
    seen: list[UploadProgress] = []
    done = client.uploads.resume("up-1", data, progress=seen.append)
    assert isinstance(done, ModelVersion)
    assert platform.models["tumour"]["versions"][1]["weights"] == data
    assert [request.url.path for request in platform.requests if request.method == "PUT"] == [
        "/v1/uploads/up-1/parts/2",
        "/v1/uploads/up-1/parts/3",
    ]
    assert [progress.sent_bytes for progress in seen] == [16, 24, 30]


def test_resume_refuses_other_bytes(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(lambda request: refusal(503, "unavailable") if request.method == "PUT" else None)
    with pytest.raises(UploadInterruptedError):
        client.datasets.upload_csv("rows", b"a,b\n1,2\n", schema={}, privacy=PRIVACY)
    platform.before.clear()
    with pytest.raises(ConfigurationError, match="other bytes"):
        client.uploads.resume("up-1", b"a,b\n1,3\n")
    assert isinstance(client.uploads.resume("up-1", b"a,b\n1,2\n"), Dataset)


def test_uploads_are_shown_and_given_up(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(lambda request: refusal(503, "unavailable") if request.method == "PUT" else None)
    with pytest.raises(UploadInterruptedError):
        client.models.upload("tumour", graph=GRAPH, weights=b"abc")
    assert client.uploads.get("up-1").received == []
    client.uploads.abort("up-1")
    with pytest.raises(NotFoundError):
        client.uploads.get("up-1")


def test_a_refused_cell_is_shown_with_its_place(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(
        lambda request: (
            refusal(422, "bad_cell", "row 3", {"row": 3, "column": "b"})
            if request.url.path.endswith("/complete")
            else None
        )
    )
    with pytest.raises(InvalidRequestError) as caught:
        client.datasets.upload_csv("rows", b"a,b\n1,2\n", schema={}, privacy=PRIVACY)
    assert (caught.value.code, caught.value.details) == ("bad_cell", {"row": 3, "column": "b"})


def test_arrays_are_written_as_safetensors(client: Nouns[Sync], platform: FakePlatform) -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    client.datasets.upload_arrays(
        "digits", {"images": images, "target": np.array([3, 4], dtype=np.int32)}, schema={"images": {}}, privacy=PRIVACY
    )
    (sent,) = bodies(platform, "POST", "/v1/datasets")
    assert (sent["format"], sent["privacy"]) == ("arrays", PRIVACY)
    found = load(platform.datasets["digits"]["data"])
    np.testing.assert_array_equal(found["images"], images)
    assert (found["target"].dtype, found["target"].tolist()) == (np.dtype("int64"), [3, 4])


def test_lists_are_written_without_numpy_types(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.datasets.upload_arrays(
        "rows", {"features": [[1, 2.5], [3, 4]], "target": [0.5, 1.5]}, schema={}, privacy=PRIVACY
    )
    found = load(platform.datasets["rows"]["data"])
    assert (found["features"].dtype, found["features"].tolist()) == (np.dtype("float64"), [[1.0, 2.5], [3.0, 4.0]])
    assert (found["target"].dtype, found["target"].tolist()) == (np.dtype("float32"), [0.5, 1.5])


def test_an_array_of_another_name_is_refused(client: Nouns[Sync]) -> None:
    with pytest.raises(ConfigurationError, match="`pixels`"):
        client.datasets.upload_arrays("rows", {"pixels": [[1]]}, schema={}, privacy=PRIVACY)


def test_lists_follow_cursors_and_stop_at_the_limit(client: Nouns[Sync], platform: FakePlatform) -> None:
    tenant = {"name": "n", "state": "active", "created_at": 1}
    platform.lists["tenants"] = [{**tenant, "id": f"t-{n}", "slug": f"s-{n}"} for n in range(8)]
    assert [one.slug for one in client.tenants.list()] == [f"s-{n}" for n in range(8)]
    assert len(platform.sent("GET", "/v1/tenants")) == 3
    assert len(client.tenants.list(limit=4)) == 4


def test_download_checks_both_digests(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.add_model("tumour", graph=b'{"a":1}', weights=b"old")
    platform.add_model("tumour", graph=b'{"a":2}', weights=b"new")
    assert client.models.download("tumour").weights == b"new"
    client.models.set_alias("tumour", "production", version=1)
    download = client.models.download("tumour")
    assert (download.version, download.graph, download.weights) == (1, {"a": 1}, b"old")
    assert client.models.download("tumour", version=2).graph == {"a": 2}


@pytest.mark.parametrize("what", ["graph", "weights"])
def test_a_download_of_other_bytes_is_refused(client: Nouns[Sync], platform: FakePlatform, what: str) -> None:
    platform.add_model("tumour", graph=b'{"a":1}', weights=b"old")
    platform.models["tumour"]["versions"][1][what] = b'{"a":2}' if what == "graph" else b"bad"
    with pytest.raises(ProtocolError, match=f"downloaded {what}"):
        client.models.download("tumour")


def test_download_of_a_model_without_versions(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.add_model("tumour")
    platform.models["tumour"]["model"]["latest_version"] = None
    with pytest.raises(NotFoundError) as caught:
        client.models.download("tumour")
    assert caught.value.code == "no_ready_version"


def test_a_download_is_saved_for_the_owner_only(client: Nouns[Sync], platform: FakePlatform, tmp_path: Path) -> None:
    platform.add_model("tumour", graph=b'{"a":1}', weights=b"new")
    download = client.models.download("tumour")
    graph, weights = download.save(tmp_path)
    assert (graph.name, weights.name) == ("tumour-1.graph.json", "tumour-1.safetensors")
    assert (json.loads(graph.read_bytes()), weights.read_bytes()) == ({"a": 1}, b"new")
    assert weights.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="exists"):
        download.save(tmp_path)
    download.save(tmp_path, overwrite=True)


def test_wait_looks_until_the_job_ends(client: Nouns[Sync], platform: FakePlatform, time: FakeTime) -> None:
    platform.jobs["j-1"] = [new_job("queued"), new_job("running", step=4), new_job("succeeded", step=10)]
    seen: list[Job] = []
    assert client.jobs.wait("j-1", progress=seen.append).state == "succeeded"
    assert [job.progress.step for job in seen] == [0, 4, 10]
    assert time.waits == [0.2, 0.24]


def test_wait_shows_a_bar(client: Nouns[Sync], platform: FakePlatform, capsys: pytest.CaptureFixture[str]) -> None:
    platform.jobs["j-1"] = [new_job("running", step=4), new_job("succeeded", step=10)]
    client.jobs.wait("j-1", progress=True)
    shown = capsys.readouterr().err
    assert "tumour: succeeded" in shown
    assert "10/10" in shown
    assert "ε charged 0.500" in shown


def test_wait_raises_when_the_job_fails(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.jobs["j-1"] = [new_job("failed", error={"code": "worker_died", "message": "the worker died"})]
    with pytest.raises(JobFailedError, match=r"the worker died \(worker_died\)") as caught:
        client.jobs.wait("j-1")
    assert caught.value.job.state == "failed"
    assert client.jobs.wait("j-1", check=False).state == "failed"


def test_wait_gives_up_after_its_time(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.jobs["j-1"] = [new_job("running")]
    with pytest.raises(TimeoutError, match="still running"):
        client.jobs.wait("j-1", timeout_s=3)


def test_a_job_that_does_not_fit_names_the_largest_that_does(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(
        lambda request: (
            refusal(409, "budget_exceeded", "no", {"largest_epsilon": 0.8}) if request.url.path == "/v1/jobs" else None
        )
    )
    with pytest.raises(BudgetExceededError) as caught:
        client.jobs.create({"dataset": "rows"})
    assert caught.value.largest_epsilon == 0.8


@pytest.mark.parametrize(
    ("call", "method", "path", "body", "answer"),
    [
        (
            lambda c: c.grants.create("model", "m", grantee="globex", actions=["model:predict"]),
            "POST",
            "/v1/grants",
            {"kind": "model", "name": "m", "grantee": "globex", "actions": ["model:predict"], "expires_at": None},
            {
                "id": "g",
                "kind": "model",
                "name": "m",
                "object_id": "o",
                "grantee": "globex",
                "actions": ["model:predict"],
                "created_at": 1,
                "expires_at": None,
            },
        ),
        (
            lambda c: c.policies.publish("permit"),
            "POST",
            "/v1/policies",
            {"text": "permit"},
            {"version": 1, "state": "active", "created_at": 1, "created_by": "p", "sha256": "0"},
        ),
        (
            lambda c: c.policies.check("permit"),
            "POST",
            "/v1/policies/check",
            {"text": "permit"},
            {"valid": True, "warnings": []},
        ),
        (
            lambda c: c.policies.activate(2),
            "POST",
            "/v1/policies/2/activate",
            None,
            {"version": 2, "state": "active", "created_at": 1, "created_by": "p", "sha256": "0"},
        ),
        (
            lambda c: c.members.update("u-1", roles=["auditor"]),
            "PATCH",
            "/v1/members/u-1",
            {"roles": ["auditor"]},
            {"id": "u-1", "name": "ana", "roles": ["auditor"], "state": "active", "created_at": 1},
        ),
        (
            lambda c: c.tenants.suspend("acme"),
            "POST",
            "/v1/tenants/acme/suspend",
            None,
            {"id": "t", "slug": "acme", "name": "Acme", "state": "suspended", "created_at": 1},
        ),
        (
            lambda c: c.tenants.set_limits("acme", {"members": 3, "storage_mib": None}),
            "PATCH",
            "/v1/tenants/acme/limits",
            {"members": 3, "storage_mib": None},
            DETAILS,
        ),
        (lambda c: c.tenants.get("acme"), "GET", "/v1/tenants/acme", None, DETAILS),
        (lambda c: c.tenant(), "GET", "/v1/tenant", None, DETAILS),
        (
            lambda c: c.tenants.new_enrolment_link("acme"),
            "POST",
            "/v1/tenants/acme/enrolment",
            None,
            {"token": "l", "url": "u", "expires_at": 1},
        ),
        (
            lambda c: c.budgets.get("rows"),
            "GET",
            "/v1/budgets/rows",
            None,
            {
                "dataset": "rows",
                "epsilon": 2,
                "delta": 1e-5,
                "epsilon_spent": 0,
                "epsilon_reserved": 0.5,
                "charges": [],
            },
        ),
        (lambda c: c.grants.revoke("g-1"), "DELETE", "/v1/grants/g-1", None, None),
        (lambda c: c.members.remove("u-1"), "DELETE", "/v1/members/u-1", None, None),
        (lambda c: c.service_accounts.delete("a-1"), "DELETE", "/v1/service-accounts/a-1", None, None),
        (lambda c: c.models.delete("m"), "DELETE", "/v1/models/m", None, None),
        (lambda c: c.models.delete("m", version=2), "DELETE", "/v1/models/m/versions/2", None, None),
        (lambda c: c.models.delete_alias("m", "a"), "DELETE", "/v1/models/m/aliases/a", None, None),
        (lambda c: c.datasets.delete("d"), "DELETE", "/v1/datasets/d", None, None),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("/") else "",
)
def test_calls_send_what_the_wire_says(
    client: Nouns[Sync], platform: FakePlatform, call: Any, method: str, path: str, body: object, answer: object
) -> None:
    if answer is not None:
        platform.before.append(lambda request: answer_json(answer) if request.url.path == path else None)
    result = call(client)
    (sent,) = platform.sent(method, path)
    assert (json.loads(sent.content) if sent.content else None) == body
    assert (result is None) == (answer is None)
    assert ("idempotency-key" in sent.headers) == (method == "POST")


def test_secrets_do_not_show_in_repr(client: Nouns[Sync], platform: FakePlatform) -> None:
    account = {"id": "a", "name": "app", "roles": ["developer"], "client_id": "c", "created_at": 1}
    platform.before.append(
        lambda request: (
            answer_json({"service_account": account, "client_secret": "hush"})
            if request.url.path == "/v1/service-accounts"
            else None
        )
    )
    made = client.service_accounts.create("app", roles=["developer"])
    assert made.client_secret == "hush"
    assert "hush" not in repr(made)
    assert "s3cret" not in repr(client)


@pytest.mark.parametrize(("used", "exceeded"), [(None, False), (3, False), (4, True)])
def test_a_limit_says_when_more_is_used(used: int | None, *, exceeded: bool) -> None:
    assert Limit(value=3, default=10, own=True, used=used).exceeded is exceeded
