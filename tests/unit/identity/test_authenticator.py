"""Callers from memory: one epoch, until the token's end, bounded. Refusals are in tests/attacks/test_tokens.py."""

import pytest

from fakes.identity import REQUEST, IdentityRoom
from fakes.storage import elsewhere
from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.ids import RequestId


def test_only_a_token_verified_in_this_epoch_is_answered_from_memory(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    assert room.authenticator.cached(token, REQUEST) is None
    caller = room.caller(token)
    assert room.authenticator.cached(token, REQUEST) == caller
    with room.database.platform() as tx:
        tx.bump_epoch()
    assert room.authenticator.cached(token, REQUEST) is None
    assert room.caller(token) == caller


def test_each_call_has_its_own_request_id(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    first = room.authenticator.authenticate(token, RequestId("req-a"))
    second = room.authenticator.cached(token, RequestId("req-b"))
    assert second is not None
    assert (first.request_id, second.request_id) == ("req-a", "req-b")


def test_memory_is_asked_without_the_database(room: IdentityRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.enrolled()
    token = room.log_in().access_token
    room.caller(token)
    number = room.epoch.current()
    monkeypatch.setattr(room.epoch, "current", lambda: number)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(room.database, "platform", refuse)
    monkeypatch.setattr(room.database, "tenant", refuse)
    assert room.authenticator.cached(token, REQUEST) is not None


def test_the_token_itself_is_not_kept(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    room.caller(token)
    assert token not in repr(room.authenticator._known._entries)


def test_memory_is_bounded_and_forgets_the_token_used_longest_ago(
    room: IdentityRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.authenticator._known, "_size", 5)
    admin, _ = room.enrolled()
    made = room.account(admin)
    hot = room.app_token(made)
    room.caller(hot)
    for _ in range(12):
        room.caller(room.app_token(made))
        assert room.authenticator.cached(hot, REQUEST) is not None
    assert len(room.authenticator._known) == 5


def test_nobody_is_known_while_the_epoch_cannot_be_read(room: IdentityRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.enrolled()
    token = room.log_in().access_token
    room.caller(token)

    def stale() -> int:
        raise UnavailableError("the platform cannot read its policy epoch; try again")

    monkeypatch.setattr(room.epoch, "current", stale)
    for ask in (room.authenticator.cached, room.authenticator.authenticate):
        with pytest.raises(UnavailableError):
            ask(token, REQUEST)


def test_a_change_during_verification_is_not_cached_over(room: IdentityRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    token = room.app_token(made)
    found = room.memberships.find

    def find_then_change(tx: object, subject: str) -> object:
        result = found(tx, subject)  # type: ignore[arg-type]
        monkeypatch.setattr(room.memberships, "find", found)
        elsewhere(lambda: room.accounts.delete(admin, made.service_account.id))
        return result

    monkeypatch.setattr(room.memberships, "find", find_then_change)
    room.caller(token)
    assert room.authenticator.cached(token, REQUEST) is None
