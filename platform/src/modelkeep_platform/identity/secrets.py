"""Passwords and random tokens: how they are made, kept and compared, and how guessing is slowed."""

import hashlib
import os
import secrets
from typing import Final

import sqlalchemy as sa
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from modelkeep_platform.core.errors import RateLimitedError, UnprocessableError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import guesses

MIN_PASSWORD: Final = 12
MAX_PASSWORD: Final = 256
_WINDOW_S: Final = 900
_MAX_GUESSES: Final = 10


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
    """Return the argon2id hash in PHC form (RFC 9106, second recommended: 64 MiB, 3 passes, 4 lanes)."""
    return Argon2id(salt=os.urandom(16), length=32, iterations=3, lanes=4, memory_cost=64 * 1024).derive_phc_encoded(
        password.encode()
    )


def password_matches(password: str, hashed: str | None) -> bool:
    """Return whether `password` is the one; takes as long when there is no such user."""
    try:
        Argon2id.verify_phc_encoded(password.encode()[: 4 * MAX_PASSWORD], hashed or _dummy())
    except InvalidKey:
        return False
    return hashed is not None


_DUMMY: list[str] = []


def _dummy() -> str:
    if not _DUMMY:
        _DUMMY.append(hash_password(secrets.token_urlsafe(24)))
    return _DUMMY[0]


class GuessLimit:
    """Counts failed guesses of one thing by one source; ten in a quarter of an hour, then it is refused.

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
            left = row["since"] + _WINDOW_S - now
            if row["count"] >= _MAX_GUESSES and left > 0:
                raise RateLimitedError("too many failed attempts; wait and try again", retry_after_s=left)

    def failed(self, *subjects: str) -> None:
        """Count one failed guess of each of `subjects`."""
        now = self._clock.now_s()
        with self._database.platform() as tx:
            tx.execute(sa.delete(guesses).where(guesses.c.since < now - _WINDOW_S))
            for subject in subjects:
                changed = tx.execute(
                    sa.update(guesses).where(guesses.c.what == subject).values(count=guesses.c.count + 1)
                )
                if not changed.rowcount:
                    tx.execute(sa.insert(guesses).values(what=subject, count=1, since=now))
