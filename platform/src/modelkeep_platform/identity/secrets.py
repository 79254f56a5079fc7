"""Passwords and random tokens: how they are made, kept and compared, and how guessing is slowed."""

import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from modelkeep_platform.core.errors import RateLimitedError, UnavailableError, UnprocessableError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import guesses
from modelkeep_platform.storage.transactions import PlatformTransaction

MIN_PASSWORD: Final = 12
MAX_PASSWORD: Final = 256
MAX_GUESSES: Final = 10
WINDOW_S: Final = 900
MEMORY_KIB = 64 * 1024  # not Final: tests of everything but passwords make hashing cheap
_HASHING_AT_ONCE: Final = 4
_HASHING_WAIT_S: Final = 5.0
# One argon2id takes 64 MiB. The memory is the process's, so the bound is too: callers nobody knows cannot exhaust it.
_hashing = threading.BoundedSemaphore(_HASHING_AT_ONCE)
# A hash of nothing: checking against it takes as long as against a real one, and no password matches.
_NOBODY: Final = "$argon2id$v=19$m=65536,t=3,p=4$" + "A" * 22 + "$" + "A" * 43


def new_secret(prefix: str) -> str:
    """Return `prefix_` and 256 random bits, URL-safe."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def token_hash(secret: str) -> str:
    """Return the SHA-256 of a 256-bit random token; such a token needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_password(password: str) -> str:
    """Return a password that may be set.

    Raises:
        UnprocessableError: shorter than 12 or longer than 256 characters, or one character repeated.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD or len(set(password)) < MIN_PASSWORD // 3:
        raise UnprocessableError(
            f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, not all alike; several words are good",
            code="weak_password",
        )
    return password


def hash_password(password: str) -> str:
    """Return the argon2id hash in PHC form (RFC 9106, second recommended: 64 MiB, 3 passes, 4 lanes).

    Raises:
        UnavailableError: too many passwords are being hashed at once.
    """
    argon2 = Argon2id(salt=os.urandom(16), length=32, iterations=3, lanes=4, memory_cost=MEMORY_KIB)
    with _one_of_few():
        return argon2.derive_phc_encoded(password.encode())


def password_matches(password: str, hashed: str | None) -> bool:
    """Return whether `password` is the one; takes as long when there is no such user.

    Raises:
        UnavailableError: too many passwords are being hashed at once.
    """
    if len(password) > MAX_PASSWORD:
        password = ""  # no password is that long; the time spent stays the same
    with _one_of_few():
        try:
            Argon2id.verify_phc_encoded(password.encode(), _NOBODY if hashed is None else hashed)
        except InvalidKey:
            return False
    return hashed is not None


@contextmanager
def _one_of_few() -> Iterator[None]:
    if not _hashing.acquire(timeout=_HASHING_WAIT_S):
        raise UnavailableError("too many people log in at once; try again", code="login_busy")
    try:
        yield
    finally:
        _hashing.release()


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
