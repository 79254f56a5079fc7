"""How guessing of passwords, codes and secrets is slowed: guesses are counted, and refused when they are many."""

from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import guesses
from modelkeep_platform.storage.transactions import PlatformTransaction

MAX_GUESSES: Final = 10
WINDOW_S: Final = 900


class GuessLimit:
    """Counts guesses of one thing or by one source; ten failures in a quarter of an hour, then it is refused.

    Where a guess is worth something, it is counted before it is checked (`attempt`) and forgiven when it was right:
    a hundred guesses sent at the same instant are counted like a hundred in a row.

    Args:
        database: where counts are.
        clock: ends windows.
    """

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def check(self, *subjects: str) -> None:
        """Raise when any of `subjects` was guessed too often.

        Raises:
            RateLimitedError: wait `retry_after_s` seconds.
        """
        now = self._clock.now_s()
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(sa.select(guesses).where(guesses.c.what.in_(subjects)))
        for row in rows:
            if row["count"] >= MAX_GUESSES and row["since"] <= now < row["since"] + WINDOW_S:
                raise _limited(row["since"] + WINDOW_S - now)

    def failed(self, *subjects: str) -> None:
        """Count one failed guess of each of `subjects`."""
        now = self._clock.now_s()
        with self._database.platform() as tx:
            _forget(tx, now)
            for subject in subjects:
                _count(tx, subject, now)

    def attempt(self, *subjects: str, most: int = MAX_GUESSES) -> None:
        """Count one guess of each of `subjects` that is about to be made; all of them, or none when it is refused.

        Args:
            subjects: what is guessed, and by whom.
            most: how many of each are let through in a quarter of an hour.

        Raises:
            RateLimitedError: one of them was guessed `most` times; wait `retry_after_s` seconds.
        """
        now = self._clock.now_s()
        with self._database.platform() as tx:
            _forget(tx, now)
            for subject in subjects:
                counted, since = _count(tx, subject, now)
                if counted > most:
                    raise _limited(since + WINDOW_S - now)

    def forgive(self, *subjects: str) -> None:
        """Take back one count of each of `subjects`: the guess was right, or never checked."""
        with self._database.platform() as tx:
            tx.execute(
                sa.update(guesses)
                .where(guesses.c.what.in_(subjects), guesses.c.count > 0)
                .values(count=guesses.c.count - 1)
            )


def _forget(tx: PlatformTransaction, now: int) -> None:
    # Windows of the future, too: the clock was set back while no server ran, and they would last until it caught up.
    over = sa.or_(guesses.c.since <= now - WINDOW_S, guesses.c.since > now)
    tx.execute(sa.delete(guesses).where(over))


def _count(tx: PlatformTransaction, subject: str, now: int) -> tuple[int, int]:
    where = guesses.c.what == subject
    changed = tx.execute(sa.update(guesses).where(where).values(count=guesses.c.count + 1))
    row = tx.first(sa.select(guesses).where(where)) if changed.rowcount else None
    if row is not None:
        return row["count"], row["since"]
    tx.execute(sa.insert(guesses).values(what=subject, count=1, since=now))
    return 1, now


def _limited(left_s: int) -> RateLimitedError:
    return RateLimitedError("too many failed attempts; wait and try again", retry_after_s=left_s)
