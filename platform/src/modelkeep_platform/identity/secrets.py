"""Passwords and random tokens: how they are made, kept and compared."""

import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from modelkeep_platform.core.errors import UnavailableError, UnprocessableError

MIN_PASSWORD: Final = 12
MAX_PASSWORD: Final = 256
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
