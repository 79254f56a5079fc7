"""Idempotency keys: a repeated request gets the first one's answer, and its effect happens once.

A key belongs to one principal of one tenant and to one request (method, path, body). The row is written before
the effect, so a second request that arrives meanwhile, or after a crash, is refused instead of being run
again. Answers that hold a secret are not kept: the repetition is told so.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import CallerError, ConflictError, MalformedError, RateLimitedError
from modelkeep_platform.core.ports import Clock, LimitSource
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.idempotency import idempotency
from modelkeep_platform.storage.transactions import System, TenantTransaction

_KEY: Final = re.compile(r"[\x21-\x7e]{8,128}\Z")
KEEP_S: Final = 24 * 3600
MAX_KEYS: Final = 10_000
"""How many keys of one principal are kept at once."""


def kept_keys(tx: TenantTransaction) -> int:
    """Return how many keys of the tenant are kept; those of more than a day count until its next call with one."""
    return tx.count(idempotency)


class IdempotencyStore:
    """Keeps answers for a day.

    Args:
        database: where rows are.
        clock: ages them.
        max_keys: how many of one principal are kept at once, so that keys cannot fill the database.
        limits: says how many of one tenant, so that many principals cannot either.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        limits: LimitSource,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._limits = limits
        self._database = database
        self._max_keys = max_keys
        self._clock = clock

    def once(
        self, caller: Caller, key: str, request: bytes, run: Callable[[], tuple[int, bytes]], *, replayable: bool
    ) -> tuple[int, bytes]:
        """Run `run` if `key` is new; otherwise return what it returned.

        Args:
            caller: whose key it is.
            key: 8 to 128 visible ASCII characters.
            request: what the key stands for: method, path and body.
            run: makes the effect; returns status and answer.
            replayable: whether the answer may be kept.

        Raises:
            MalformedError: not a usable key.
            ConflictError: the key was used for another request, is being used, or its answer held a secret.
            RateLimitedError: the principal's or the tenant's keys of the day are used up.
        """
        if not _KEY.match(key):
            raise MalformedError("an Idempotency-Key is 8 to 128 visible ASCII characters", code="invalid_key")
        key_hash = hashlib.sha256(key.encode()).hexdigest()
        request_hash = hashlib.sha256(request).hexdigest()
        kept = self._reserve(caller, key_hash, request_hash)
        if kept is not None:
            return kept
        try:
            status, answer = run()
        except CallerError:
            self._forget(caller, key_hash)  # a refusal had no effect: the corrected call may use the key again
            raise
        self._keep(caller, key_hash, status, answer if replayable else None)
        return status, answer

    def _reserve(self, caller: Caller, key_hash: str, request_hash: str) -> tuple[int, bytes] | None:
        now = self._clock.now_s()
        try:
            with self._database.tenant(caller.tenant, by=caller) as tx:
                tx.change(tx.delete(idempotency).where(idempotency.c.created_at < now - KEEP_S))
                tx.insert(
                    idempotency,
                    principal=caller.principal,
                    key_hash=key_hash,
                    request_hash=request_hash,
                    created_at=now,
                )
                # After the insert, which a refusal takes back: a repetition gets its answer also when there is no room.
                self._bound(tx, caller, now)
        except DuplicateError:
            return self._kept(caller, key_hash, request_hash)
        return None

    def _bound(self, tx: TenantTransaction, caller: Caller, now: int) -> None:
        mine, most_of_all = idempotency.c.principal == caller.principal, self._limits.of(tx.owner).idempotency_keys
        for who, most, where in (("account", self._max_keys, mine), ("tenant", most_of_all, sa.true())):
            if tx.count(idempotency, where) <= most:
                continue
            # When the oldest is forgotten; looked for only now, since it reads every row.
            oldest = tx.first(tx.select(idempotency, sa.func.min(idempotency.c.created_at).label("at")).where(where))
            since = now if oldest is None else oldest["at"]
            raise RateLimitedError(
                f"{most} Idempotency-Keys of this {who} are kept for a day; send this request without one",
                retry_after_s=max(1, since + KEEP_S - now),
                code="too_many_keys",
            )

    def _kept(self, caller: Caller, key_hash: str, request_hash: str) -> tuple[int, bytes]:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            row = tx.first(
                tx.select(idempotency).where(
                    idempotency.c.principal == caller.principal, idempotency.c.key_hash == key_hash
                )
            )
        if row is None or row["status"] is None:
            raise ConflictError(
                "a request with this Idempotency-Key is running or was cut short; look whether it took effect, "
                "then use a new key",
                code="idempotency_unfinished",
            )
        if row["request_hash"] != request_hash:
            raise ConflictError(
                "this Idempotency-Key was used for another request; use a new one", code="idempotency_mismatch"
            )
        if row["answer"] is None:
            raise ConflictError(
                "this request was done and its answer held a secret that is shown once; rotate the secret instead",
                code="idempotency_secret",
            )
        return int(row["status"]), bytes(row["answer"])

    def _keep(self, caller: Caller, key_hash: str, status: int, answer: bytes | None) -> None:
        with self._database.tenant(caller.tenant, by=System(reason="keep an answer")) as tx:
            tx.change(
                tx.update(idempotency)
                .where(idempotency.c.principal == caller.principal, idempotency.c.key_hash == key_hash)
                .values(status=status, answer=answer)
            )

    def _forget(self, caller: Caller, key_hash: str) -> None:
        with self._database.tenant(caller.tenant, by=System(reason="forget a refused request")) as tx:
            tx.change(
                tx.delete(idempotency).where(
                    idempotency.c.principal == caller.principal, idempotency.c.key_hash == key_hash
                )
            )
