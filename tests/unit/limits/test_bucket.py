"""The bucket against its promise, in exact numbers: never more than rate and burst, and never less without need."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep_platform.limits.bucket import LEAST_BURST, MINUTE_S, Bucket, Rate

SLACK = Fraction(1, 10**6)
"""Of a token: what rounding may add up to, over the longest of these stories."""

rates = st.builds(
    lambda per_minute, seconds: Rate.of(per_minute, burst_seconds=seconds),
    st.one_of(st.integers(1, 100), st.integers(1, 10**9)),
    st.integers(1, 60),
)
gaps = st.one_of(st.just(0.0), st.floats(0, 0.1), st.floats(0, 30), st.integers(0, 100).map(float))


def take(bucket: Bucket, rate: Rate, now_s: float) -> bool:
    bucket.fill(rate, now_s, rate.burst)
    if not bucket.left():
        return False
    bucket.tokens -= 1
    return True


@given(rates, st.lists(gaps, max_size=80))
def test_any_takes_at_any_times_are_within_rate_and_burst_and_none_is_refused_that_the_model_lets_through(
    rate: Rate, waits: list[float]
) -> None:
    bucket, now_s = Bucket(float(rate.burst), 1000.0), 1000.0
    per_second = Fraction(rate.per_minute, MINUTE_S)
    tokens, at = Fraction(rate.burst), Fraction(1000)
    passed: list[Fraction] = []
    for wait in waits:
        now_s += wait
        now = Fraction(now_s)
        tokens, at = min(Fraction(rate.burst), tokens + (now - at) * per_second), now
        allowed = take(bucket, rate, now_s)
        assert allowed == (tokens >= 1) or abs(tokens - 1) < SLACK
        if allowed:
            tokens -= 1
            passed.append(now)
    for first, began in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= rate.burst + per_second * (passed[last] - began) + SLACK


@given(rates, st.lists(st.tuples(gaps, st.floats(-(10**6), 10**6)), max_size=40))
def test_a_clock_that_steps_gives_a_burst_a_step_at_most_and_locks_nobody_out(
    rate: Rate, moves: list[tuple[float, float]]
) -> None:
    bucket, now_s, granted, real_s = Bucket(float(rate.burst), 0.0), 0.0, 0, 0.0
    for wait, step in moves:
        now_s += wait + step
        real_s += wait
        granted += take(bucket, rate, now_s)
    assert granted <= rate.burst * (1 + len(moves)) + rate.per_second * real_s + 1
    # Whatever the clock did: after one token's time, a request passes.
    now_s += 1.000001 / rate.per_second
    assert take(bucket, rate, now_s)


@pytest.mark.parametrize(
    ("per_minute", "seconds", "burst"),
    [(1, 3, 1), (10, 3, 10), (60, 3, 10), (199, 3, 10), (600, 3, 30), (60_000, 3, 3_000), (600, 60, 600), (30, 60, 30)],
)
def test_the_burst_is_worth_its_seconds_and_a_handful_at_least(per_minute: int, seconds: int, burst: int) -> None:
    assert Rate.of(per_minute, burst_seconds=seconds).burst == burst
    assert LEAST_BURST == 10


@given(rates, st.floats(0, 59))
def test_after_the_wait_that_it_says_there_is_a_token(rate: Rate, used_s: float) -> None:
    bucket = Bucket(0.0, 0.0)
    bucket.fill(rate, used_s / rate.per_second / 60, rate.burst)
    wait_s = bucket.wait_s(rate, 1)
    bucket.fill(rate, bucket.filled_at_s + wait_s, rate.burst)
    assert bucket.left() >= 1


def test_a_bucket_that_owes_lets_nothing_through_until_it_does_not() -> None:
    rate, bucket = Rate.of(60, burst_seconds=3), Bucket(-2.0, 0.0)
    assert (bucket.left(), bucket.wait_s(rate, 1)) == (0, 3.0)
    assert [take(bucket, rate, now_s) for now_s in (1.0, 2.0, 2.9, 3.0)] == [False, False, False, True]
