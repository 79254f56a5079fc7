"""Ready is what a request needs; the caller learns that it is not, the operator why, and nobody can ask too often."""

import logging
from collections.abc import Callable

import pytest

from fakes.core import FakeClock
from modelkeep_platform.app.health import Health
from modelkeep_platform.core.errors import IntegrityError, UnavailableError


class Parts:
    """What a server needs."""

    def __init__(self, clock: FakeClock) -> None:
        self.answer: Callable[[], object] = lambda: True
        self.asked = 0
        self.health = Health({"the part is broken": self._part, "the other is": lambda: None}, clock=clock)

    def _part(self) -> object:
        self.asked += 1
        return self.answer()


@pytest.fixture
def parts(clock: FakeClock) -> Parts:
    return Parts(clock)


def fails(error: Exception) -> Callable[[], object]:
    def check() -> object:
        raise error

    return check


@pytest.mark.parametrize("value", [True, None, 0, 7], ids=repr)
def test_what_neither_raises_nor_says_no_is_well(parts: Parts, value: object) -> None:
    parts.answer = lambda: value
    parts.health.ready()
    assert parts.health.reasons() == ()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: False, id="says no"),
        pytest.param(fails(UnavailableError("x")), id="raises"),
        pytest.param(fails(IntegrityError("x")), id="is not whole"),
        pytest.param(fails(OSError("/srv/data/secret")), id="breaks"),
    ],
)
def test_the_reason_is_in_the_log_only(
    parts: Parts, answer: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    parts.answer = answer
    with caplog.at_level(logging.ERROR), pytest.raises(UnavailableError) as caught:
        parts.health.ready()
    assert (caught.value.error_code, caught.value.message) == (
        "not_ready",
        "the server is not ready; its log says why",
    )
    (record,) = caplog.records
    assert vars(record)["fields"] == {"reason": "the part is broken"}


def test_a_change_is_one_line_and_so_is_its_end(
    parts: Parts, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for well in (True, False, False, False, True, True):
            parts.answer = {True: lambda: True, False: lambda: False}[well]
            clock.advance(1)
            parts.health.reasons()
    assert [record.getMessage() for record in caplog.records] == [
        "the server is not ready",
        "the server is ready again",
    ]


def test_a_flood_of_questions_looks_once_a_second(parts: Parts, clock: FakeClock) -> None:
    for _ in range(100):
        parts.health.ready()
    assert parts.asked == 1
    clock.advance(1)
    parts.health.ready()
    assert parts.asked == 2
