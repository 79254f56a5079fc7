"""What a terminal sees: tables and JSON, and never a control character of a server's text."""

import json
from collections.abc import Callable, Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.server import FakePlatform, new_job, new_model, new_version, refusal
from fakes.terminal import Terminal, unsafe_in
from modelkeep.cli.output import cell, print_json

EVIL = "x\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08\x7f\u202e\u2066\u200b\u2028\ue000[red]y"
MODEL = new_model("m")["model"]
VERSION = new_version("m", 1, b"{}", b"w")
DATASET = {"id": "d", "name": "d", "description": "", "format": "csv", "schema": {"columns": []}, "created_at": 1}
DATASET |= {"privacy": {"visibility": "private"}, "state": "ready"}
CHARGE = {"job_id": "j", "noise_multiplier": 1.5, "sample_rate": 0.1, "steps": 3, "state": "charged", "at": 1}
BUDGET = {"dataset": "d", "epsilon": 2.5, "delta": 1e-5, "epsilon_spent": 1.0, "epsilon_reserved": 0.5}
BUDGET |= {"charges": [CHARGE]}
GRANT: dict[str, object] = {
    "id": "g",
    "kind": "model",
    "name": "m",
    "object_id": "o",
    "grantee": "globex",
    "actions": ["model:predict"],
}
GRANT |= {"created_at": 1, "expires_at": None}
POLICY = {"version": 1, "state": "active", "created_at": 1, "created_by": "p", "sha256": "a", "text": "permit(...);"}
MEMBER = {"id": "p", "name": "ana", "roles": ["analyst"], "state": "active", "created_at": 1}
ACCOUNT = {"id": "s", "name": "bot", "roles": ["developer"], "client_id": "c", "created_at": 1}
TENANT = {"id": "t", "slug": "acme", "name": "Acme", "state": "active", "created_at": 1}
LINK = {"token": "k", "url": "https://models.test/e#k", "expires_at": 1}
WHO = {"kind": "tenant", "tenant": {"id": "t", "slug": "acme", "name": "Acme"}, "principal": "p", "name": "n"}
WHO |= {"roles": ["analyst"]}
ENTRY = {"id": "e", "index": 0, "time": 1, "action": "model:read", "outcome": "done", "actor_tenant": "t"}
ENTRY |= {"actor_kind": "user", "principal": "p", "name": "ana", "kind": "model", "object_id": "o"}
ENTRY |= {"request_id": "r", "policies": ["p"], "facts": {"name": "m"}, "salt": "", "entry": "", "leaf_hash": ""}

# command, method, path, answer: whatever a server can put on the screen
SHOWN: list[tuple[str, str, str, Any]] = [
    ("whoami", "GET", "/v1/whoami", WHO),
    ("models list", "GET", "/v1/models", [MODEL | {"aliases": {"production": 1}}]),
    ("models versions m", "GET", "/v1/models/m/versions", [VERSION]),
    ("datasets list", "GET", "/v1/datasets", [DATASET]),
    ("budgets list", "GET", "/v1/budgets", [BUDGET]),
    ("grants list", "GET", "/v1/grants", [GRANT]),
    ("grants create model m --to globex --action model:predict", "POST", "/v1/grants", GRANT),
    ("policies list", "GET", "/v1/policies", [POLICY]),
    ("policies show 1", "GET", "/v1/policies/1", POLICY),
    ("policies activate 1", "POST", "/v1/policies/1/activate", POLICY),
    ("members list", "GET", "/v1/members", [MEMBER]),
    ("members invite ana --role analyst", "POST", "/v1/members", {"member": MEMBER, "invitation": LINK}),
    ("members set-roles p --role analyst", "PATCH", "/v1/members/p", MEMBER),
    ("service-accounts list", "GET", "/v1/service-accounts", [ACCOUNT]),
    (
        "service-accounts create bot --role developer",
        "POST",
        "/v1/service-accounts",
        {"service_account": ACCOUNT, "client_secret": "z"},
    ),
    ("tenants list", "GET", "/v1/tenants", [TENANT]),
    ("tenants create acme --name Acme", "POST", "/v1/tenants", {"tenant": TENANT, "enrolment": LINK}),
    ("tenants suspend acme", "POST", "/v1/tenants/acme/suspend", TENANT),
    ("tenants enrolment-link acme", "POST", "/v1/tenants/acme/enrolment", LINK),
    ("jobs list", "GET", "/v1/jobs", [new_job("failed", error={"code": "c", "message": "m"})]),
    ("jobs cancel j-1", "POST", "/v1/jobs/j-1/cancel", new_job("cancelled", error={"code": "c", "message": "m"})),
    ("jobs logs j", "GET", "/v1/jobs/j/logs", [{"at": 1, "text": "training began"}]),
    ("audit entries", "GET", "/v1/audit/entries", [ENTRY]),
]


def page(value: Any) -> Any:
    return {"items": value, "next_cursor": None} if isinstance(value, list) else value


def evil(value: Any, *, but: Collection[str] = ()) -> Any:
    """Put control characters into every text that a server says, but what it must repeat."""
    if isinstance(value, dict):
        # Fields have names that the SDK knows; free mappings may have any.
        return {key: evil(item, but=but) for key, item in value.items()}
    if isinstance(value, list):
        return [evil(item, but=but) for item in value]
    return value + EVIL if isinstance(value, str) and value not in but else value


@pytest.mark.parametrize(("command", "method", "path", "answer"), SHOWN, ids=[line[0] for line in SHOWN])
def test_what_a_server_says_is_shown(terminal: Terminal, command: str, method: str, path: str, answer: Any) -> None:
    terminal.answers[method, path] = page(answer)
    assert terminal.run(*command.split()).stdout
    shown = terminal.json(*command.split())
    assert isinstance(shown, type(answer))


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
@pytest.mark.parametrize(("command", "method", "path", "answer"), SHOWN, ids=[line[0] for line in SHOWN])
def test_no_text_of_a_server_steers_the_terminal(
    terminal: Terminal, command: str, method: str, path: str, answer: Any, as_json: bool
) -> None:
    terminal.answers[method, path] = page(evil(answer, but=command.split()))
    result = terminal.run(*(["--json"] if as_json else []), *command.split())
    assert unsafe_in(result.output) == set()
    assert "owned" in result.stdout


def test_the_name_of_something_else_does_not_either(terminal: Terminal) -> None:
    terminal.answers["POST", "/v1/tenants/acme/suspend"] = evil(TENANT)
    result = terminal.run("tenants", "suspend", "acme", status=1)
    assert "another tenant" in result.stderr
    assert unsafe_in(result.output) == set()


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_names_within_free_objects_do_not_either(terminal: Terminal, as_json: bool) -> None:
    entry = ENTRY | {"facts": {EVIL: {EVIL: [EVIL]}}}
    terminal.answers["GET", "/v1/audit/entries"] = page([entry])
    result = terminal.run(*(["--json"] if as_json else []), "audit", "entries")
    assert unsafe_in(result.output) == set()


@pytest.mark.parametrize(
    "details",
    [{}, {"errors": [{"line": EVIL, "column": EVIL, "message": EVIL}, EVIL]}, {"policies": [EVIL], "reasons": [EVIL]}],
    ids=["plain", "places", "policies"],
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429])
def test_errors_do_not_either(terminal: Terminal, status: int, details: dict[str, Any]) -> None:
    terminal.answers["GET", "/v1/models"] = refusal(status, "c" + EVIL, "m" + EVIL, details | {"largest_epsilon": EVIL})
    terminal.env |= {"MODELKEEP_CLIENT_ID": None, "MODELKEEP_TOKEN": "t"}
    result = terminal.run("models", "list", status=1)
    assert unsafe_in(result.output) == set()
    assert result.stderr.startswith("error (c")


def test_the_login_prompt_does_not_either(terminal: Terminal, platform: FakePlatform) -> None:
    terminal.env |= {"MODELKEEP_CLIENT_ID": None}
    terminal.answers["POST", "/issuer/device_authorization"] = {
        "device_code": "d",
        "user_code": "BCDF" + EVIL,
        "verification_uri": f"{platform.base_url}/issuer/device",
        "expires_in": 600,
        "interval": 1,
    }
    assert unsafe_in(terminal.run("login").output) == set()


@given(st.text())
def test_a_cell_holds_no_control_character(text: str) -> None:
    for value in (text, [text], {text: text}, {"name": text}, [{"name": text}], [{text: text}]):
        assert unsafe_in(cell("text", value)) == set()
        assert "\n" not in cell("text", value)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_is_printable_ascii_and_says_the_same(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        keep: Callable[[str], None] = printed.append
        patch.setattr("click.echo", keep)
        print_json(value)
    (text,) = printed
    assert text.isascii()
    assert unsafe_in(text) == set()
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("created_at", 0, "1970-01-01 00:00:00Z"),
        ("at", 1_800_000_000, "2027-01-15 08:00:00Z"),
        ("expires_at", None, "-"),
        ("created_at", 1 << 39, str(1 << 39)),
        ("created_at", -1, "-1"),
        ("epsilon", 0.30000000000000004, "0.3"),
        ("aliases", {}, "-"),
        ("aliases", {"production": 2, "old": None}, "production=2"),
        ("roles", ["analyst", "auditor"], "analyst, auditor"),
        ("inputs", [{"name": "x", "dtype": "float32"}], "x"),
        ("provenance", {"steps": {"first": 1, "last": None}, "shape": [2, 3]}, "steps=(first=1), shape=[2, 3]"),
        ("name", "a\tb\nc", "a b c"),
        ("description", "x" * 3000, "x" * 1999 + "…"),
    ],
)
def test_cells(name: str, value: object, shown: str) -> None:
    assert cell(name, value) == shown


def test_markup_is_text(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/tenants"] = page([TENANT | {"name": "[bold]A[/bold] :smile:"}])
    assert "[bold]A[/bold] :smile:" in terminal.run("tenants", "list").stdout


def test_an_empty_list_says_so_beside_the_output(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/models"] = page([])
    result = terminal.run("models", "list")
    assert (result.stdout, result.stderr) == ("", "none\n")
    assert terminal.json("models", "list") == []


def test_a_pipe_gets_a_line_a_row(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/tenants"] = page([TENANT | {"slug": "s" * 63, "name": "n" * 120}] * 3)
    assert len(terminal.run("tenants", "list").stdout.splitlines()) == 4


@pytest.mark.parametrize(
    "args", [["--json", "tenants", "list"], ["tenants", "list", "--json"]], ids=["before", "after"]
)
def test_json_may_be_asked_for_before_and_after(terminal: Terminal, args: list[str]) -> None:
    terminal.answers["GET", "/v1/tenants"] = page([TENANT])
    assert json.loads(terminal.run(*args).stdout) == [TENANT]


def test_salts_of_the_log_are_not_shown(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/audit/entries"] = page([ENTRY])
    (shown,) = terminal.json("audit", "entries")
    assert not {"salt", "entry", "leaf_hash"} & set(shown)


def test_lists_stop_at_the_limit(terminal: Terminal, platform: FakePlatform) -> None:
    platform.lists["tenants"] = [TENANT | {"slug": f"t{number}"} for number in range(9)]
    assert [item["slug"] for item in terminal.json("tenants", "list", "--limit", "5")] == ["t0", "t1", "t2", "t3", "t4"]
