"""Logging in and out: what is kept, where, for whom; and that a login goes to its own server only."""

import json
import stat

import pytest

from fakes.sdk import FakeTime
from fakes.server import BASE, FakePlatform
from fakes.terminal import Terminal


@pytest.fixture
def person(terminal: Terminal) -> Terminal:
    terminal.env |= {"MODELKEEP_CLIENT_ID": None, "MODELKEEP_CLIENT_SECRET": None}
    return terminal


def move_elsewhere(terminal: Terminal, time: FakeTime) -> None:
    """Let another server answer the same terminal."""
    terminal.platform = FakePlatform("https://other.test", now_s=time)
    terminal.env |= {"MODELKEEP_SERVER": "https://other.test", "MODELKEEP_CLIENT_ID": None}


def test_a_person_logs_in_by_device_code_and_the_server_is_remembered(person: Terminal) -> None:
    said = person.run("login", "--organization", "acme").stderr
    assert f"open {BASE}/issuer/device?user_code=BCDF-GHJK" in said
    assert "logged in as app of acme" in said
    person.env["MODELKEEP_SERVER"] = None
    assert person.json("whoami")["tenant"] == "acme"


def test_what_is_kept_is_private_and_holds_no_client_secret(terminal: Terminal) -> None:
    terminal.run("login", "--client-id", "app")
    files = list(terminal.folder.iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not [path for path in files if b"s3cret" in path.read_bytes()]
    (profile,) = terminal.folder.glob("profile-*.json")
    kept = {"server": BASE, "organization": None, "client_id": "app", "issuer": None}
    assert json.loads(profile.read_text()) == kept


def test_a_profile_that_others_may_read_is_refused(person: Terminal) -> None:
    person.run("login")
    (profile,) = person.folder.glob("profile-*.json")
    profile.chmod(0o644)
    assert "error (state): others may read" in person.run("whoami", status=1).stderr


def test_the_secret_is_asked_for_and_not_shown(person: Terminal) -> None:
    said = person.run("login", "--client-id", "app", text="s3cret\n")
    assert "client secret:" in said.stderr
    assert "s3cret" not in said.output


def test_a_wrong_secret_is_refused_and_nothing_is_remembered(person: Terminal) -> None:
    refused = person.run("login", "--client-id", "app", text="wrong\n", status=1)
    assert "error (invalid_client): the client id or secret is wrong\n  log in with" in refused.stderr
    assert not list(person.folder.glob("profile-*"))


def test_a_remembered_application_needs_its_secret_each_time(person: Terminal) -> None:
    person.run("login", "--client-id", "app", text="s3cret\n")
    assert "set MODELKEEP_CLIENT_SECRET" in person.run("whoami", status=1).stderr
    person.env["MODELKEEP_CLIENT_SECRET"] = "s3cret"
    assert person.json("whoami")["name"] == "app"


def test_an_application_has_no_organization_to_choose(person: Terminal) -> None:
    person.run("login", "--client-id", "app", "--organization", "acme", status=2)


def test_a_remembered_client_id_is_not_tried_on_another_server(terminal: Terminal, time: FakeTime) -> None:
    terminal.run("login", "--client-id", "app")
    move_elsewhere(terminal, time)
    assert "error (login_required)" in terminal.run("whoami", status=1).stderr
    assert not terminal.platform.requests


def test_logging_out_elsewhere_keeps_the_profile(person: Terminal, time: FakeTime) -> None:
    person.run("login")
    move_elsewhere(person, time)
    assert person.run("logout").stderr == "there was no login\n"
    assert list(person.folder.glob("profile-*"))


def test_half_a_login_is_refused(terminal: Terminal) -> None:
    terminal.env["MODELKEEP_CLIENT_SECRET"] = None
    assert "set MODELKEEP_CLIENT_SECRET to the secret of `app`" in terminal.run("whoami", status=1).stderr


def test_a_token_from_elsewhere_comes_first(terminal: Terminal) -> None:
    terminal.env["MODELKEEP_TOKEN"] = "not-known"
    assert "error (unauthenticated): log in first" in terminal.run("whoami", status=1).stderr


def test_commands_never_ask_a_person(person: Terminal) -> None:
    refused = person.run("models", "list", status=1)
    assert refused.stderr == "error (login_required): you are not logged in; run `modelkeep login`\n"
    assert not person.platform.requests


def test_no_server_is_known(person: Terminal) -> None:
    person.env["MODELKEEP_SERVER"] = None
    assert person.run("whoami", status=1).stderr == (
        "error (configuration): no server is known; run `modelkeep --server https://... login`\n"
    )


def test_profiles_are_logins_of_their_own(person: Terminal) -> None:
    person.run("--profile", "work", "login")
    assert person.json("--profile", "work", "whoami")["name"] == "app"
    assert "login_required" in person.run("whoami", status=1).stderr


def test_logout_ends_the_login_here_and_at_the_issuer(person: Terminal, platform: FakePlatform) -> None:
    person.run("login")
    assert person.run("logout").stderr == "logged out\n"
    assert platform.revoked == ["refresh-1"]
    assert not list(person.folder.glob("profile-*"))
    assert not list(person.folder.glob("token-*.json"))
    assert person.run("logout").stderr == "there was no login\n"


def test_logout_forgets_an_application(terminal: Terminal) -> None:
    terminal.run("login", "--client-id", "app")
    assert terminal.run("logout").stderr == "logged out\n"
    assert not list(terminal.folder.glob("profile-*"))


def test_login_says_who_one_is_as_json(person: Terminal) -> None:
    assert person.json("login")["roles"] == ["developer"]


def test_a_named_issuer_is_remembered(person: Terminal) -> None:
    issuer = f"{BASE}/issuer"
    person.run("login", "--issuer", issuer)
    assert person.json("whoami")["name"] == "app"
    (profile,) = person.folder.glob("profile-*.json")
    assert json.loads(profile.read_text())["issuer"] == issuer


def test_an_application_of_the_environment_logs_in(terminal: Terminal) -> None:
    terminal.env |= {"MODELKEEP_CLIENT_ID": "app", "MODELKEEP_CLIENT_SECRET": "s3cret"}
    assert "logged in as app" in terminal.run("login").stderr


def test_an_organization_that_is_named_comes_before_the_environments_application(terminal: Terminal) -> None:
    terminal.env |= {"MODELKEEP_CLIENT_ID": "app", "MODELKEEP_CLIENT_SECRET": "s3cret"}
    assert "/issuer/device?user_code=" in terminal.run("login", "--organization", "acme").stderr
