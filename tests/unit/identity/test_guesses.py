"""How guessing is slowed."""

import threading

import pytest

from fakes.core import FakeClock
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.identity.guesses import MAX_GUESSES, WINDOW_S, GuessLimit
from modelkeep_platform.storage.database import Database


@pytest.fixture
def guesses(database: Database, clock: FakeClock) -> GuessLimit:
    return GuessLimit(database=database, clock=clock)


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
