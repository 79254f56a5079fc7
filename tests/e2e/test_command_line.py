"""The `modelkeep` command against a real server: every noun, tables and JSON, errors with the next step."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelkeep.cli.main import main
from modelkeep_platform.cli.main import main as platform
from services.house import GRAPH, ROWS, SCHEMA, WEIGHTS, House, approve, job

pytestmark = pytest.mark.e2e


class Terminal:
    """Runs the command as one service account."""

    def __init__(self, house: House, folder: Path, secrets: tuple[str, str]) -> None:
        self.env = {
            "MODELKEEP_SERVER": house.url,
            "MODELKEEP_STATE_DIR": str(folder),
            "MODELKEEP_CLIENT_ID": secrets[0],
            "MODELKEEP_CLIENT_SECRET": secrets[1],
        }

    def run(self, *args: str, status: int = 0, text: str | None = None) -> Result:
        result = CliRunner().invoke(main, list(args), env=self.env, input=text, catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result

    def json(self, *args: str, text: str | None = None) -> Any:
        return json.loads(self.run("--json", *args, text=text).stdout)


@pytest.fixture
def terminal(house: House, tmp_path: Path) -> Terminal:
    return Terminal(house, tmp_path / "state", house.acme.secrets["developer"])


@pytest.fixture
def admin(house: House, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal(house, house.made.folder / "state" / "acme-admin", ("", ""))
    terminal.env["MODELKEEP_TOKEN"] = house.token(house.acme.admin)
    return terminal


def write(folder: Path, name: str, content: object) -> str:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_whoami_names_tenant_and_roles(terminal: Terminal) -> None:
    assert terminal.json("whoami")["tenant"] == "acme"
    assert "developer" in terminal.run("whoami").stdout


def test_a_model_goes_up_predicts_and_comes_down(terminal: Terminal, tmp_path: Path) -> None:
    graph, weights = write(tmp_path, "g.json", GRAPH), write(tmp_path, "w.safetensors", WEIGHTS)
    up = terminal.json("models", "upload", "cli-model", "--graph", graph, "--weights", weights)
    assert (up["name"], up["version"], up["state"]) == ("cli-model", 1, "ready")
    assert json.loads(terminal.run("predict", "cli-model", text="[[1, 1], [0, 0]]").stdout) == [[3.5, 6.5], [0.5, -0.5]]
    assert json.loads(terminal.run("predict", "cli-model", "--csv", text="1,1\n").stdout) == [[3.5, 6.5]]
    terminal.run("models", "set-alias", "cli-model", "production", "1")
    assert "production=1" in terminal.run("models", "show", "cli-model").stdout
    assert "cli-model" in terminal.run("models", "list").stdout
    assert terminal.json("models", "versions", "cli-model")[0]["weights_bytes"] == len(WEIGHTS)
    out = tmp_path / "out"
    terminal.run("models", "delete-alias", "cli-model", "production")
    denied = terminal.run("models", "download", "cli-model", "--out", str(out), status=0)
    assert "cli-model-1.safetensors" in denied.stdout
    assert (out / "cli-model-1.safetensors").read_bytes() == WEIGHTS
    again = terminal.run("models", "download", "cli-model", "--out", str(out), status=1)
    assert "exists" in again.stderr
    assert "Aborted" in terminal.run("models", "delete", "cli-model", text="n\n", status=1).stderr
    terminal.run("models", "delete", "cli-model", "--yes")
    gone = terminal.run("models", "show", "cli-model", status=1)
    assert gone.stderr.startswith("error (not_found): there is no such object")
    assert "request req_" in gone.stderr


def test_a_dataset_is_declared_private_or_public_but_not_both(terminal: Terminal, tmp_path: Path) -> None:
    rows, schema = write(tmp_path, "rows.csv", ROWS), write(tmp_path, "schema.json", SCHEMA)
    both = ("--public", "why", "--epsilon", "1")
    for wrong in ((), both, ("--epsilon", "1")):
        terminal.run("datasets", "upload", "cli-rows", rows, "--schema", schema, *wrong, status=2)
    private = ("--epsilon", "1", "--delta", "1e-5", "--n-public", "60")
    up = terminal.json("datasets", "upload", "cli-rows", rows, "--schema", schema, *private)
    assert up["privacy"]["budget"] == {"epsilon": 1.0, "delta": 1e-5}
    assert terminal.json("budgets", "show", "cli-rows")["epsilon_spent"] == 0
    assert "cli-rows" in terminal.run("budgets", "list").stdout
    assert "cli-rows" in terminal.run("datasets", "list").stdout
    assert "category" in terminal.run("datasets", "show", "cli-rows").stdout
    terminal.run("datasets", "delete", "cli-rows", "--yes")


def test_a_job_is_planned_started_watched_and_listed(terminal: Terminal, tmp_path: Path) -> None:
    declared = write(tmp_path, "job.json", job(dataset="open", privacy=None, into="cli-trained"))
    assert terminal.json("jobs", "plan", declared)["private"] is False
    done = terminal.json("jobs", "create", declared, "--wait")
    assert (done["state"], done["result"]) == ("succeeded", {"model": "cli-trained", "version": 1})
    assert terminal.json("jobs", "wait", done["id"])["state"] == "succeeded"
    assert done["id"] in terminal.run("jobs", "list").stdout
    assert "training began" in terminal.run("jobs", "logs", done["id"]).stdout
    assert terminal.json("jobs", "show", done["id"])["into"] == "cli-trained"
    assert terminal.json("jobs", "cancel", done["id"])["state"] == "succeeded"


def test_governance_from_the_terminal(admin: Terminal, terminal: Terminal, tmp_path: Path) -> None:
    grant = admin.json(
        "grants", "create", "model", "model", "--to", "globex", "--action", "model:predict", "--days", "2"
    )
    assert grant["actions"] == ["model:predict"]
    assert grant["id"] in admin.run("grants", "list").stdout
    admin.run("grants", "revoke", grant["id"])
    good = write(
        tmp_path, "p.cedar", '@id("x") forbid(principal, action == Modelkeep::Action::"model:delete", resource);'
    )
    assert admin.json("policies", "check", good)["valid"] is True
    before = next(item["version"] for item in admin.json("policies", "list") if item["state"] == "active")
    version = admin.json("policies", "publish", good)["version"]
    assert "forbid" in admin.run("policies", "show", str(version)).stdout
    assert admin.json("policies", "activate", str(before))["state"] == "active"
    bad = write(tmp_path, "bad.cedar", "permit(principal, action, resource)\nwhen { principal.shoe_size > 44 };")
    refused = admin.run("policies", "publish", bad, status=1)
    assert "line 2, column" in refused.stderr
    denied = terminal.run("policies", "publish", good, status=1)
    assert denied.stderr.startswith("error (forbidden): `policy:publish` is denied")


def test_people_from_the_terminal(admin: Terminal) -> None:
    invited = admin.json("members", "invite", "cli-ana", "--role", "analyst")
    assert invited["link"].startswith("http")
    account = admin.json("service-accounts", "create", "cli-bot", "--role", "developer")
    assert account["client_secret"]
    listed = next(item for item in admin.json("service-accounts", "list") if item["name"] == "cli-bot")
    assert admin.json("service-accounts", "rotate", listed["id"])["client_secret"] != account["client_secret"]
    admin.run("service-accounts", "delete", listed["id"], "--yes")
    member = next(item for item in admin.json("members", "list") if item["name"] == "cli-ana")
    assert admin.json("members", "set-roles", member["id"], "--role", "auditor")["roles"] == ["auditor"]
    admin.run("members", "remove", member["id"], "--yes")


def test_the_log_is_read_and_verified(house: House, tmp_path: Path) -> None:
    auditor = Terminal(house, tmp_path / "state", house.acme.secrets["auditor"])
    first = auditor.json("audit", "verify")
    assert first["extends"] is None
    assert auditor.json("audit", "verify")["extends"] == first["size"]
    assert "model:create" in auditor.run("audit", "entries").stdout


def test_the_operator_runs_tenants_and_nothing_else(house: House, tmp_path: Path) -> None:
    operator = Terminal(house, tmp_path / "state", ("operator", house.made.operator_secret))
    made = operator.json("tenants", "create", "cli-corp", "--name", "CLI Corp")
    assert made["link"].startswith("http")
    assert operator.json("tenants", "suspend", "cli-corp")["state"] == "suspended"
    assert operator.json("tenants", "resume", "cli-corp")["state"] == "active"
    assert operator.json("tenants", "enrolment-link", "cli-corp")["link"] != made["link"]
    assert "cli-corp" in operator.run("tenants", "list").stdout
    assert "a new key" in operator.run("issuer", "rotate-key").stderr
    assert "cli-corp" in operator.run("tenants", "list").stdout
    refused = operator.run("models", "list", status=1)
    assert refused.stderr.startswith("error (operator_forbidden)")


def test_a_person_logs_in_and_out(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    person = Terminal(house, tmp_path / "state", ("", ""))
    without = {**person.env, "MODELKEEP_SERVER": ""}
    lost = CliRunner().invoke(main, ["whoami"], env=without)
    assert (lost.exit_code, "no server is known" in lost.stderr) == (1, True)
    nobody = person.run("whoami", status=1)
    assert nobody.stderr.startswith("error (login_required)")
    monkeypatch.setattr("modelkeep.auth._print_prompt", lambda prompt: approve(prompt, "acme-admin"))
    said = person.run("login", "--organization", "acme")
    assert "logged in as acme-admin of acme" in said.stderr
    after = CliRunner().invoke(main, ["--json", "whoami"], env={**person.env, "MODELKEEP_SERVER": ""})
    assert json.loads(after.stdout)["name"] == "acme-admin"
    assert "logged out" in person.run("logout").stderr
    assert person.run("whoami", status=1).stderr.startswith("error (login_required)")


def test_limits_are_set_from_the_terminal_and_on_the_machine(house: House, tmp_path: Path) -> None:
    operator = Terminal(house, tmp_path / "state", ("operator", house.made.operator_secret))
    operator.run("tenants", "create", "small", "--name", "Small")
    assert operator.json("tenants", "set-limits", "small", "members=3")["limits"]["members"]["value"] == 3
    wrong = operator.run("tenants", "set-limits", "small", "memberz=3", status=1)
    assert wrong.stderr.startswith("error (invalid_body)")

    def here(*args: str, status: int = 0) -> Result:
        result = CliRunner().invoke(platform, ["tenant", "limits", "--data", str(house.made.data), *args])
        assert result.exit_code == status, result.output
        return result

    rows = [line.split() for line in here("small", "open_uploads=2").stdout.splitlines()]
    assert ["members", "3", "1000", "0"] in rows
    assert ["open_uploads", "2", "64", "0"] in rows
    assert json.loads(here("small", "members=default", "--json").stdout)["limits"]["members"]["own"] is False
    assert here("small", "memberz=3", status=1).stderr.startswith("error (invalid_limit): `memberz` is not a limit")
    assert "NAME=NUMBER" in here("small", "members=many", status=2).stderr
    assert here("never", status=1).stderr.startswith("error (not_found)")
    # The server saw what was set beside it.
    assert operator.json("tenants", "show", "small")["limits"]["open_uploads"]["value"] == 2
