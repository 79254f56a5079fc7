"""The log from the terminal: verified against what this machine keeps; status 1 when it does not verify."""

from fakes.log import FakeSigner
from fakes.server import FakePlatform
from fakes.terminal import Terminal


def test_the_first_look_keeps_a_checkpoint_and_later_ones_extend_it(terminal: Terminal, platform: FakePlatform) -> None:
    platform.log.add(5)
    first = terminal.json("audit", "verify")
    assert (first["size"], first["extends"], first["entries_checked"]) == (5, None, 5)
    platform.log.add(3)
    second = terminal.json("audit", "verify", "--entries", "2")
    assert (second["size"], second["extends"], second["entries_checked"]) == (8, 5, 2)


def test_a_log_that_was_cut_is_an_error(terminal: Terminal, platform: FakePlatform) -> None:
    platform.log.add(5)
    terminal.run("audit", "verify")
    platform.log.cut(3)
    refused = terminal.run("audit", "verify", status=1)
    assert refused.stderr.startswith("error (audit_rollback): the log has 3 entries and had 5")
    assert "do not rely on the log before you know why" in refused.stderr
    assert refused.stdout == ""


def test_a_log_under_another_key_is_an_error(terminal: Terminal, platform: FakePlatform) -> None:
    platform.log.add(5)
    terminal.run("audit", "verify")
    platform.log.signer = FakeSigner(b"x" * 32)
    assert terminal.run("audit", "verify", status=1).stderr.startswith("error (audit_key_changed)")


def test_entries_of_one_request(terminal: Terminal, platform: FakePlatform) -> None:
    platform.log.add(5)
    (entry,) = terminal.json("audit", "entries", "--request", "req-3")
    assert entry["id"] == "log-3"
    assert "model:read" in terminal.run("audit", "entries").stdout
