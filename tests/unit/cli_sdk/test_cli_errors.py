"""Errors on the terminal: status 1, one line with the stable code, the next step, and the request id."""

import warnings
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fakes.server import FakePlatform, refusal
from fakes.terminal import Terminal
from modelkeep import errors
from modelkeep.cli.explaining import explained

REQUEST = "  request req-1; the audit log and the operator know it by this id\n"
REFUSALS: list[tuple[int, str, dict[str, Any], str]] = [
    (
        404,
        "not_found",
        {},
        "  check the name and who you are (`modelkeep whoami`); what another tenant granted is `owner~name`\n",
    ),
    (403, "forbidden", {"policies": ["p1", "p2"], "reasons": ["no"]}, "  decided by p1, p2\n"),
    (403, "forbidden", {}, ""),
    (409, "name_taken", {}, ""),
    (409, "budget_exceeded", {}, ""),
    (409, "budget_exceeded", {"largest_epsilon": True}, ""),
    (422, "invalid_cell", {"row": 3, "column": "age"}, ""),
    (
        422,
        "invalid_policy",
        {"errors": [{"line": 2, "column": 7, "message": "no such attribute"}, {"message": "more"}, "odd"]},
        "  line 2, column 7: no such attribute\n  line ?, column ?: more\n",
    ),
    (422, "invalid_policy", {"errors": "odd"}, ""),
    (413, "too_large", {}, ""),
]


@pytest.mark.parametrize(("status", "code", "details", "step"), REFUSALS)
def test_a_refusal_is_explained(terminal: Terminal, status: int, code: str, details: dict[str, Any], step: str) -> None:
    terminal.answers["GET", "/v1/models"] = refusal(status, code, "it is so", details)
    refused = terminal.run("models", "list", status=1)
    assert refused.stderr == f"error ({code}): it is so\n{step}{REQUEST}"
    assert refused.stdout == ""


def test_json_does_not_change_where_errors_go(terminal: Terminal) -> None:
    refused = terminal.run("models", "show", "none", "--json", status=1)
    assert (refused.stdout, refused.stderr[:18]) == ("", "error (not_found):")


def test_many_places_do_not_flood_the_terminal(terminal: Terminal) -> None:
    details = {"errors": [{"line": n, "column": 1, "message": "m"} for n in range(1000)]}
    terminal.answers["POST", "/v1/policies/check"] = refusal(422, "invalid_policy", "m", details)
    assert len(terminal.run("policies", "check", "-", text="x", status=1).stderr.splitlines()) == 22


def test_rate_limits_say_when(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/models"] = refusal(429, "rate_limited", "slower", {"retry_after_s": 7})
    assert "  try again in 7 s\n" in terminal.run("models", "list", status=1).stderr


def test_a_broken_platform_is_named(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/models"] = refusal(503, "unavailable", "a part is starting")
    said = terminal.run("models", "list", status=1).stderr
    assert said.startswith("error (unavailable): a part is starting\n  try again in a while")


def test_a_platform_that_is_away_is_named(terminal: Terminal, platform: FakePlatform) -> None:
    def away(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    platform.before.append(away)
    said = terminal.run("whoami", status=1).stderr
    assert said.startswith("error (connection_failed)")
    assert "check the address (`--server`)" in said


def test_an_answer_that_is_none_is_named(terminal: Terminal) -> None:
    terminal.answers["GET", "/v1/models"] = httpx.Response(200, text="<html>")
    assert terminal.run("models", "list", status=1).stderr.startswith("error (protocol)")


@pytest.mark.parametrize(
    "url", ["http://models.example", "ftp://x", "https://u:hunter2@models.example", "ftp://u:hunter2@x"]
)
def test_an_address_that_cannot_be_is_refused_before_anything_is_sent(
    terminal: Terminal, platform: FakePlatform, url: str
) -> None:
    refused = terminal.run("--server", url, "whoami", status=1)
    assert refused.stderr.startswith("error (configuration)")
    assert "hunter2" not in refused.stderr
    assert not platform.requests


def leaves(kind: type[errors.ModelkeepError]) -> list[type[errors.ModelkeepError]]:
    return [kind] + [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)]


@pytest.mark.parametrize("kind", leaves(errors.ModelkeepError), ids=lambda kind: kind.__name__)
def test_every_error_of_the_sdk_is_explained(kind: type[errors.ModelkeepError]) -> None:
    error = kind.__new__(kind)
    errors.ModelkeepError.__init__(error, "it is so\x1b[2J")
    if isinstance(error, errors.APIError):
        errors.APIError.__init__(error, "it is so\x1b[2J", code="known", status=400, request_id="req-1")
    if isinstance(error, errors.JobFailedError):
        error.job = type("Job", (), {"id": "j-1"})()
    lines = explained(error).splitlines()
    assert lines[0] == f"error ({error.code}): it is so[2J"
    assert all(line.startswith("  ") for line in lines[1:])


def unacknowledged(names: bytes) -> Callable[[httpx.Request, httpx.Response], httpx.Response]:
    def name(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        named = [(b"x-modelkeep-unacknowledged", names)] if request.method == "DELETE" else []
        headers = [*answer.headers.raw, *named]
        return httpx.Response(answer.status_code, headers=headers, content=answer.content)

    return name


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_servers_that_have_not_seen_a_change_are_named_on_standard_error(
    terminal: Terminal, platform: FakePlatform, options: list[str]
) -> None:
    platform.after.append(unacknowledged("p-one,p\x1b[2J\x9b\u202etwo".encode()))
    done = terminal.run("grants", "revoke", "g-1", *options)
    (warned,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "had not reached p-one, p[2Jtwo when the call returned" in warned
    assert "warning" not in done.stdout
    assert "\x1b" not in done.output


def test_other_warnings_are_shown_as_python_does(terminal: Terminal, platform: FakePlatform) -> None:
    def warn(_request: httpx.Request) -> None:
        warnings.warn("of a library", FutureWarning, stacklevel=1)

    platform.before.append(warn)
    with pytest.warns(FutureWarning, match="of a library"):
        terminal.run("grants", "revoke", "g-1")


def test_an_interrupt_is_no_traceback(terminal: Terminal, platform: FakePlatform) -> None:
    def interrupted(_request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    platform.before.append(interrupted)
    assert "Aborted" in terminal.run("whoami", status=1).stderr
