"""Jobs from the terminal: declared in a file, watched to their end, their failures explained."""

from typing import Any

import pytest

from fakes.server import FakePlatform, new_job, refusal
from fakes.terminal import Terminal

SPEC = {"dataset": "rows", "into": "tumour", "steps": 10}
PLAN: dict[str, Any] = {"private": True, "steps": 10, "sample_rate": 0.25, "noise_multiplier": 1.5, "clip_norm": 0.5}
PLAN |= {"epsilon": 2.0, "delta": 1e-5, "n_public": 400, "fits": False, "largest_epsilon": 0.7}
PLAN |= {"epsilon_spent_before": 2.0, "epsilon_spent_after": None, "accountant": "rdp", "rdp_epsilon": 2.0}


def test_a_plan_comes_from_a_file_or_standard_input(terminal: Terminal) -> None:
    terminal.answers["POST", "/v1/job-plans"] = PLAN
    assert terminal.json("jobs", "plan", terminal.file("job.json", SPEC)) == PLAN
    shown = terminal.run("jobs", "plan", "-", text='{"steps": 10}').stdout
    assert "noise_multiplier      1.5\n" in shown
    assert "largest_epsilon       0.7\n" in shown


@pytest.mark.parametrize("command", ["plan", "create"])
def test_a_job_is_an_object(terminal: Terminal, platform: FakePlatform, command: str) -> None:
    assert "does not hold a JSON object" in terminal.run("jobs", command, "-", text="[]", status=1).stderr
    assert not platform.requests


def test_create_sends_what_the_file_says(terminal: Terminal) -> None:
    terminal.answers["POST", "/v1/jobs"] = new_job("queued")
    assert terminal.json("jobs", "create", terminal.file("job.json", SPEC))["state"] == "queued"
    assert terminal.body("POST", "/v1/jobs") == SPEC


def test_create_and_wait_names_the_job_first(terminal: Terminal, platform: FakePlatform) -> None:
    terminal.answers["POST", "/v1/jobs"] = new_job("queued")
    platform.jobs["j-1"] = [new_job("running", step=4), new_job("succeeded", step=10)]
    result = terminal.run("jobs", "create", terminal.file("job.json", SPEC), "--wait")
    assert result.stderr == "started j-1; it goes on when this command is stopped\n"
    assert "succeeded" in result.stdout


def test_wait_ends_with_the_job(terminal: Terminal, platform: FakePlatform) -> None:
    platform.jobs["j-1"] = [new_job("running", step=4), new_job("succeeded", step=10)]
    assert terminal.json("jobs", "wait", "j-1")["state"] == "succeeded"


def test_somebody_who_watches_sees_a_bar_beside_the_output(
    terminal: Terminal, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.jobs["j-1"] = [new_job("running", step=4), new_job("succeeded", step=10)]
    monkeypatch.setattr("modelkeep.cli.shared.Context.progress", property(lambda _: True))
    watched = terminal.run("jobs", "wait", "j-1", "--json")
    assert "tumour: succeeded" in watched.stderr
    assert "ε charged 0.500" in watched.stderr
    assert watched.stdout.startswith("{")


def test_nobody_who_watches_gets_no_bar(terminal: Terminal, platform: FakePlatform) -> None:
    platform.jobs["j-1"] = [new_job("succeeded", step=10)]
    assert terminal.run("jobs", "wait", "j-1").stderr == ""


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_job_that_does_not_succeed_is_status_1(terminal: Terminal, platform: FakePlatform, state: str) -> None:
    platform.jobs["j-1"] = [new_job(state, error={"code": "worker_died", "message": "the worker died"})]
    assert terminal.run("jobs", "wait", "j-1", status=1).stderr == (
        f"error (job_failed): the job `j-1` {state}: the worker died (worker_died)\n"
        "  read its log with `modelkeep jobs logs j-1`\n"
    )


def test_waiting_has_an_end(terminal: Terminal, platform: FakePlatform) -> None:
    platform.jobs["j-1"] = [new_job("running", step=4)]
    refused = terminal.run("jobs", "wait", "j-1", "--timeout", "1", status=1)
    assert refused.stderr == "error (timeout): the job is still running after 1 s; it goes on\n"


def test_a_job_over_budget_says_what_fits(terminal: Terminal) -> None:
    details = {"largest_epsilon": 0.7}
    terminal.answers["POST", "/v1/jobs"] = refusal(409, "budget_exceeded", "the budget has ε=0.5 left", details)
    assert terminal.run("jobs", "create", "-", text="{}", status=1).stderr == (
        "error (budget_exceeded): the budget has ε=0.5 left\n"
        "  the largest ε of a job of this shape that still fits is 0.7\n"
        "  request req-1; the audit log and the operator know it by this id\n"
    )


def test_the_list_shows_how_far_each_job_is_and_what_was_charged(terminal: Terminal) -> None:
    public = new_job("queued") | {"id": "j-2", "progress": {"step": 0, "steps": 5, "epsilon_charged": None}}
    jobs = [new_job("running", step=4), public]
    terminal.answers["GET", "/v1/jobs"] = {"items": jobs, "next_cursor": None}
    head, first, second = (line.split() for line in terminal.run("jobs", "list").stdout.splitlines())
    assert head == ["id", "state", "dataset", "into", "step", "ε", "charged", "created", "at"]
    assert first[-6:-2] == ["4", "of", "10", "0.5"]
    assert second[-6:-2] == ["0", "of", "5", "-"]
    assert [job["progress"]["epsilon_charged"] for job in terminal.json("jobs", "list")] == [0.5, None]


def test_logs_are_lines_with_their_time(terminal: Terminal) -> None:
    lines = [{"at": 0, "text": "training began"}, {"at": 1, "text": "step 1"}]
    terminal.answers["GET", "/v1/jobs/j-1/logs"] = {"items": lines, "next_cursor": None}
    shown = terminal.run("jobs", "logs", "j-1").stdout.splitlines()
    assert [line.rstrip() for line in shown[1:]] == [
        "1970-01-01 00:00:00Z  training began",
        "1970-01-01 00:00:01Z  step 1",
    ]
