"""Budgets, grants, policies, people and tenants from the terminal: what is sent, and secrets shown once."""

import pytest

from fakes.sdk import FakeTime
from fakes.server import FakePlatform
from fakes.terminal import Terminal

GRANT: dict[str, object] = {
    "id": "g",
    "kind": "model",
    "name": "m",
    "object_id": "o",
    "grantee": "globex",
    "actions": ["model:predict"],
}
GRANT |= {"created_at": 1, "expires_at": None}
POLICY = {"version": 3, "state": "active", "created_at": 1, "created_by": "p", "sha256": "a"}
ACCOUNT = {"id": "s-1", "name": "bot", "roles": ["developer"], "client_id": "c-1", "created_at": 1}
TENANT = {"id": "t", "slug": "acme", "name": "Acme", "state": "active", "created_at": 1}
LINK = {"token": "k", "url": "https://models.test/e#k", "expires_at": 1}


def test_a_grant_names_object_grantee_and_actions(terminal: Terminal) -> None:
    terminal.answers["POST", "/v1/grants"] = GRANT
    args = ("--to", "globex", "--action", "model:predict", "--action", "model:read")
    assert terminal.json("grants", "create", "model", "m", *args)["id"] == "g"
    body = terminal.body("POST", "/v1/grants")
    assert body["actions"] == ["model:predict", "model:read"]
    assert (body["kind"], body["name"], body["grantee"], body["expires_at"]) == ("model", "m", "globex", None)


def test_a_grant_may_end(terminal: Terminal, time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.answers["POST", "/v1/grants"] = GRANT | {"kind": "dataset", "name": "d"}
    monkeypatch.setattr("modelkeep.cli.governance.time.time", time)
    terminal.run("grants", "create", "dataset", "d", "--to", "globex", "--action", "dataset:train", "--days", "2")
    assert terminal.body("POST", "/v1/grants")["expires_at"] == int(time.now) + 2 * 86_400


@pytest.mark.parametrize(
    "args",
    [["secret", "m", "--to", "g", "--action", "a"], ["model", "m", "--action", "a"], ["model", "m", "--to", "g"]],
    ids=["kind", "grantee", "actions"],
)
def test_a_grant_is_whole(terminal: Terminal, args: list[str]) -> None:
    terminal.run("grants", "create", *args, status=2)


def test_a_grant_is_revoked(terminal: Terminal, platform: FakePlatform) -> None:
    assert terminal.json("grants", "revoke", "g-1") == {"revoked": "g-1"}
    assert platform.sent("DELETE", "/v1/grants/g-1")


@pytest.mark.parametrize("command", ["check", "publish"])
def test_a_policy_comes_from_a_file_or_standard_input(terminal: Terminal, command: str) -> None:
    path = "/v1/policies/check" if command == "check" else "/v1/policies"
    terminal.answers["POST", path] = {"valid": True, "warnings": []} if command == "check" else POLICY
    terminal.run("policies", command, terminal.file("p.cedar", "permit(π);"))
    assert terminal.body("POST", path) == {"text": "permit(π);"}
    terminal.platform.requests.clear()
    terminal.run("policies", command, "-", text="forbid();")
    assert terminal.body("POST", path) == {"text": "forbid();"}


def test_a_policy_is_shown_with_its_text(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/policies/3"] = POLICY | {"text": "forbid(\n\tprincipal\n);"}
    assert terminal.run("policies", "show", "3").stdout.splitlines()[-3:] == ["forbid(", " principal", ");"]
    assert terminal.json("policies", "show", "3")["text"] == "forbid(\n\tprincipal\n);"


def test_a_long_line_of_a_policy_is_shown_whole(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/policies/3"] = POLICY | {"text": "x" * 5000}
    assert "x" * 5000 in terminal.run("policies", "show", "3").stdout


def test_a_budget_is_shown_with_its_charges(terminal: Terminal) -> None:
    charge = {"job_id": "j-1", "noise_multiplier": 1.5, "sample_rate": 0.1, "steps": 3, "state": "charged", "at": 1}
    budget = {"dataset": "d", "epsilon": 2.5, "delta": 1e-5, "epsilon_spent": 1.25, "epsilon_reserved": 0.5}
    terminal.answers["GET", "/v1/budgets/d"] = {**budget, "charges": [charge]}
    shown = terminal.run("budgets", "show", "d").stdout
    assert "epsilon_spent     1.25\n" in shown
    assert "epsilon_reserved  0.5\n" in shown
    assert "j-1" in shown
    assert terminal.json("budgets", "show", "d")["charges"] == [charge]


@pytest.mark.parametrize("command", ["create bot --role developer --role analyst", "rotate s-1"])
def test_a_secret_is_shown_once_with_its_account(terminal: Terminal, command: str) -> None:
    path = "/v1/service-accounts/s-1/rotate" if command.startswith("rotate") else "/v1/service-accounts"
    terminal.answers["POST", path] = {"service_account": ACCOUNT, "client_secret": "once"}
    shown = terminal.json("service-accounts", *command.split())
    assert shown == {"id": "s-1", "name": "bot", "client_id": "c-1", "client_secret": "once"}
    assert not [path for path in terminal.folder.rglob("*") if path.is_file() and b"once" in path.read_bytes()]


def test_a_role_that_is_none_is_a_wrong_option(terminal: Terminal, platform: FakePlatform) -> None:
    refused = terminal.run("members", "invite", "ana", "--role", "root", status=2)
    assert "'tenant-admin', 'developer', 'analyst', 'auditor'" in refused.stderr
    assert not platform.requests


def test_an_invitation_is_a_link(terminal: Terminal) -> None:
    member = {"id": "p-1", "name": "ana", "roles": ["analyst"], "state": "invited", "created_at": 1}
    terminal.answers["POST", "/v1/members"] = {"member": member, "invitation": LINK}
    shown = terminal.json("members", "invite", "ana", "--role", "analyst")
    assert shown == {"id": "p-1", "name": "ana", "roles": ["analyst"], "link": LINK["url"], "expires_at": 1}
    assert terminal.body("POST", "/v1/members") == {"username": "ana", "roles": ["analyst"]}


def test_the_operator_adds_a_tenant_and_passes_its_link_on(terminal: Terminal) -> None:
    terminal.answers["POST", "/v1/tenants"] = {"tenant": TENANT, "enrolment": LINK}
    shown = terminal.json("tenants", "create", "acme", "--name", "Acme")
    assert shown == {"slug": "acme", "link": LINK["url"], "expires_at": 1}


@pytest.mark.parametrize("command", ["suspend", "resume"])
def test_the_operator_suspends_and_resumes(terminal: Terminal, command: str) -> None:
    terminal.answers["POST", f"/v1/tenants/acme/{command}"] = TENANT
    assert terminal.json("tenants", command, "acme") == TENANT


DETAILS = {
    **TENANT,
    "limits": {
        "members": {"value": 5, "default": 1000, "own": True, "used": 7},
        "requests_per_minute": {"value": 60000, "default": 60000, "own": False, "used": None},
    },
}


@pytest.mark.parametrize(
    ("command", "path"), [("tenant", "/v1/tenant"), ("tenants show acme", "/v1/tenants/acme")], ids=["own", "operator"]
)
def test_a_tenant_is_shown_with_its_limits_and_their_use(terminal: Terminal, command: str, path: str) -> None:
    terminal.answers["GET", path] = DETAILS
    lines = [line.split() for line in terminal.run(*command.split()).stdout.splitlines()]
    assert ["slug", "acme"] in lines
    assert lines[-3:] == [
        ["limit", "value", "default", "used"],
        ["members", "5", "1000", "7"],
        ["requests_per_minute", "60000", "60000", "-"],
    ]
    assert terminal.json(*command.split()) == DETAILS


def test_limits_are_set_and_taken_back_and_what_is_above_them_is_said(terminal: Terminal) -> None:
    terminal.answers["PATCH", "/v1/tenants/acme/limits"] = DETAILS
    shown = terminal.run("tenants", "set-limits", "acme", "members=5", "requests_per_minute=default")
    assert terminal.body("PATCH", "/v1/tenants/acme/limits") == {"members": 5, "requests_per_minute": None}
    assert shown.stderr == "more than members is there already: nothing is taken away, and nothing more is let in\n"


@pytest.mark.parametrize(
    "text", ["members", "members=", "members=-1", "members=1.5", "members=٩", "members=" + "9" * 16]
)
def test_a_limit_that_is_none_is_a_wrong_argument(terminal: Terminal, platform: FakePlatform, text: str) -> None:
    assert "is not NAME=NUMBER or NAME=default" in terminal.run("tenants", "set-limits", "acme", text, status=2).stderr
    terminal.run("tenants", "set-limits", "acme", status=2)
    assert not platform.requests
