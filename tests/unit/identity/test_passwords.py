"""Passwords, random secrets, and how guessing is slowed."""

import threading

import pytest

from fakes.core import FakeClock
from modelkeep_platform.core.errors import RateLimitedError, UnavailableError, UnprocessableError
from modelkeep_platform.identity import secrets
from modelkeep_platform.identity.secrets import (
    MAX_GUESSES,
    WINDOW_S,
    GuessLimit,
    check_password,
    hash_password,
    new_secret,
    password_matches,
    token_hash,
)
from modelkeep_platform.storage.database import Database


@pytest.fixture
def guesses(database: Database, clock: FakeClock) -> GuessLimit:
    return GuessLimit(database=database, clock=clock)


@pytest.mark.parametrize("password", ["", "short", "elevenchars", "a" * 12, "abcabcabcabc", "x1" * 129])
def test_weak_and_endless_passwords_are_refused(password: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        check_password(password)
    assert caught.value.error_code == "weak_password"
    assert not password or password not in caught.value.message


@pytest.mark.parametrize("password", ["twelve chars", "correct horse battery", "pässwörter sind", "ab1!" * 64])
def test_long_passwords_of_any_characters_are_taken(password: str) -> None:
    assert check_password(password) == password


def test_a_password_matches_its_own_salted_hash_only() -> None:
    hashed = hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert hashed != hash_password("correct horse battery")
    assert password_matches("correct horse battery", hashed)
    assert not password_matches("correct horse batterz", hashed)
    assert not password_matches("", hashed)


@pytest.mark.parametrize("password", ["", "correct horse battery", "x" * 10_000])
def test_nobody_has_no_password(password: str) -> None:
    assert not password_matches(password, None)


def test_nobodys_hash_costs_what_a_real_one_costs() -> None:
    real = hash_password("correct horse battery")
    assert secrets._NOBODY.split("$")[:4] == real.split("$")[:4]
    assert len(secrets._NOBODY) == len(real)


def test_few_passwords_are_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_hashing", threading.BoundedSemaphore(1))
    monkeypatch.setattr(secrets, "_HASHING_WAIT_S", 0.01)
    with secrets._one_of_few():
        for work in (lambda: hash_password("correct horse battery"), lambda: password_matches("x", None)):
            with pytest.raises(UnavailableError) as caught:
                work()
            assert caught.value.error_code == "login_busy"
    assert not password_matches("x", None)


def test_random_secrets_have_256_bits_and_a_prefix() -> None:
    made = {new_secret("mks") for _ in range(100)}
    assert len(made) == 100
    assert all(one.startswith("mks_") and len(one) == 4 + 43 for one in made)


def test_the_hash_of_a_random_secret_is_sha_256() -> None:
    assert token_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_ten_failures_then_a_quarter_of_an_hour(guesses: GuessLimit, clock: FakeClock) -> None:
    for _ in range(10):
        guesses.check("client:a")
        guesses.failed("client:a")
    clock.advance(100)
    with pytest.raises(RateLimitedError) as caught:
        guesses.check("client:b", "client:a")
    assert caught.value.retry_after_s == 800
    guesses.check("client:b")
    clock.advance(800)
    guesses.check("client:a")
    guesses.failed("client:a")
    guesses.check("client:a")


def test_an_attempt_counts_all_of_its_subjects_or_none(guesses: GuessLimit) -> None:
    for number in range(10):
        guesses.attempt("source:s", f"user:{number}")
    with pytest.raises(RateLimitedError) as caught:
        guesses.attempt("user:new", "source:s")
    assert caught.value.retry_after_s == 900
    for _ in range(10):
        guesses.attempt("user:new")
    with pytest.raises(RateLimitedError):
        guesses.attempt("user:new")


def test_nobody_waits_for_a_clock_that_was_set_back_to_catch_up(guesses: GuessLimit, clock: FakeClock) -> None:
    for _ in range(MAX_GUESSES):
        guesses.failed("client:x")
    with pytest.raises(RateLimitedError):
        guesses.check("client:x")
    clock.time_s -= 86_400
    guesses.check("client:x")
    for _ in range(MAX_GUESSES):
        guesses.attempt("client:x")
    with pytest.raises(RateLimitedError) as caught:
        guesses.attempt("client:x")
    assert 0 < caught.value.retry_after_s <= WINDOW_S


def test_right_guesses_are_forgiven(guesses: GuessLimit) -> None:
    for _ in range(30):
        guesses.attempt("user:ada", "source:s")
        guesses.forgive("user:ada", "source:s")
    guesses.forgive("user:ada", "user:never")
    for _ in range(10):
        guesses.attempt("user:ada")
    with pytest.raises(RateLimitedError):
        guesses.attempt("user:ada")


def test_a_refused_attempt_does_not_lengthen_the_wait(guesses: GuessLimit, clock: FakeClock) -> None:
    for _ in range(10):
        guesses.attempt("user:ada")
    for _ in range(5):
        clock.advance(100)
        with pytest.raises(RateLimitedError):
            guesses.attempt("user:ada")
    clock.advance(400)
    guesses.attempt("user:ada")


def test_guesses_sent_at_the_same_instant_are_counted_like_guesses_in_a_row(guesses: GuessLimit) -> None:
    passed: list[bool] = []

    def guess() -> None:
        try:
            guesses.attempt("user:ada")
            passed.append(True)
        except RateLimitedError:
            passed.append(False)

    threads = [threading.Thread(target=guess) for _ in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (passed.count(True), passed.count(False)) == (10, 15)
