"""Rates by key, kept in memory and shared by server processes through leases.

A process that is alone keeps a bucket for each key. Several share one bucket a key, in the database: each takes lots of
tokens out of it and spends them from memory, so that a request costs no database. A lot is worth a quarter of a second,
which bounds how often the database is asked. What the processes may hold comes out of the burst: together they let
through no more than one process would, but for one token each.

A process that was alone brings what it spent when a second appears; until then, a heartbeat long, both count alone. The
shared bucket is filled by the clock of the day, within its transaction; a step of that clock gives a burst at most
(`bucket`). Not promised: a process that starts, or that the others leave, starts with a full bucket.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.ports import Clock
from modelkeep_platform.limits.bucket import MINUTE_S, ROUNDED, Bucket, Rate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.limits import request_buckets

_LOTS_PER_S: Final = 4
_KEPT: Final = 65_536
_FORGET_S: Final = 2 * MINUTE_S  # by then every bucket is full, also one that was owed a burst

Asked: TypeAlias = Sequence[tuple[str, Rate]]


class Standing(NamedTuple):
    """Where somebody stands.

    Args:
        key: whose bucket it is.
        rate: what it lets through.
        remaining: how many requests may come at once now, as far as this process knows.
        wait_s: seconds until one more may, rounded up, at least 1.
        allowed: whether this request may.
    """

    key: str
    rate: Rate
    remaining: int
    wait_s: int
    allowed: bool


@dataclass(slots=True)
class _Share:
    """What this process may let through of one key: by itself, or out of what it leased."""

    rate: Rate
    bucket: Bucket
    leased: bool = False
    ask_at_s: float = 0.0

    def must_lease(self, now_s: float) -> bool:
        return not self.leased or (now_s >= self.ask_at_s and not self.bucket.left())


class Rates:
    """Takes tokens by key; safe for threads.

    Args:
        database: where shared buckets are.
        clock: fills them.
        processes: how many server processes are alive.
    """

    def __init__(self, *, database: Database, clock: Clock, processes: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._processes = processes
        self._shares: OrderedDict[str, _Share] = OrderedDict()
        self._lock = threading.Lock()
        self._leasing = threading.Lock()

    def take(self, asked: Asked) -> Standing | None:
        """Take one token of every key, or of none.

        Returns:
            Where the key stands that has fewest left, or that has none; None when leases must be taken first (`lease`,
            which asks the database).
        """
        now_s, alone = self._clock.monotonic_s(), self._processes() == 1
        with self._lock:
            shares: list[_Share] = []
            fewest: Standing | None = None
            unknown = False
            for key, rate in asked:
                share = self._share(key, rate, now_s, alone=alone)
                if not alone and share.must_lease(now_s):
                    unknown = True
                    continue
                standing = _standing(key, rate, share, now_s)
                if not standing.allowed:
                    return standing
                if fewest is None or standing.remaining < fewest.remaining:
                    fewest = standing
                shares.append(share)
            if unknown:
                return None
            for share in shares:
                share.bucket.tokens -= 1
            return fewest

    def lease(self, asked: Asked) -> None:
        """Take a lot for every key of which this process has nothing left."""
        # One at a time: of many requests that find nothing left, one asks and the others find what it got.
        with self._leasing:
            for key, rate in asked:
                self._lease(key, rate)

    def _lease(self, key: str, rate: Rate) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            share = self._share(key, rate, now_s, alone=False)
            if not share.must_lease(now_s):
                return
            spent = 0.0
            if not share.leased:
                share.bucket.fill(rate, now_s, rate.burst)
                spent = rate.burst - share.bucket.tokens
                share.bucket.tokens, share.leased = 0.0, True
        got, wait_s = self._claim(key, rate, spent)
        with self._lock:
            share.bucket.tokens += got
            share.ask_at_s = self._clock.monotonic_s() + wait_s

    def _claim(self, key: str, rate: Rate, spent: float) -> tuple[int, float]:
        """Return how many tokens were leased, and how many seconds later it makes sense to ask again.

        Args:
            key: whose.
            rate: what comes into the bucket.
            spent: what this process let through while it was alone.
        """
        processes = self._processes()
        lot = max(1, min(rate.burst // (2 * processes), math.ceil(rate.per_second / _LOTS_PER_S)))
        # INVARIANT: what is in the bucket and what the processes hold of it are together no more than the burst.
        most = max(1.0, float(rate.burst - processes * (lot - 1)))
        here = request_buckets.c.key == key
        try:
            with self._database.platform() as tx:
                row = tx.first(sa.select(request_buckets).where(here).with_for_update())
                now_s = self._clock.now().timestamp()  # within the transaction: one process after the other
                bucket = Bucket(most, now_s) if row is None else Bucket(row["tokens"], row["filled_at"])
                bucket.fill(rate, now_s, most)
                bucket.tokens = max(bucket.tokens - spent, -float(rate.burst))
                got = min(lot, bucket.left())
                bucket.tokens -= got
                values = {"tokens": bucket.tokens, "filled_at": bucket.filled_at_s}
                if row is None:
                    stale = sa.func.abs(request_buckets.c.filled_at - now_s) > _FORGET_S
                    tx.execute(sa.delete(request_buckets).where(stale))
                    tx.execute(sa.insert(request_buckets).values(key=key, **values))
                elif got or spent or now_s < row["filled_at"]:  # a clock that was set back is to be noted, too
                    tx.execute(sa.update(request_buckets).where(here).values(**values))
        except DuplicateError:
            return self._claim(key, rate, spent)
        return got, 0.0 if got == lot else bucket.wait_s(rate, lot)

    def _share(self, key: str, rate: Rate, now_s: float, *, alone: bool) -> _Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(rate, Bucket(float(rate.burst), now_s))
            while len(self._shares) > _KEPT:
                self._shares.popitem(last=False)
        else:
            self._shares.move_to_end(key)
        if share.rate is not rate and share.rate != rate:
            # The operator set another: nobody waits as the old one said, or spends what was leased under it.
            share.rate, share.ask_at_s = rate, 0.0
            share.bucket.tokens = 0.0 if share.leased else min(share.bucket.tokens, rate.burst)
        if alone and share.leased:
            # The others are gone. It begins full, so that what it spends from now on is what it brings to the next one.
            share.bucket, share.leased = Bucket(float(rate.burst), now_s), False
        if alone:
            share.bucket.fill(rate, now_s, rate.burst)
        return share


def _standing(key: str, rate: Rate, share: _Share, now_s: float) -> Standing:
    """Return how it stands when this request is let through, if it can be."""
    bucket = share.bucket
    left = bucket.left()
    wait_s = share.ask_at_s - now_s if share.leased else bucket.wait_s(rate, left + 1)
    return Standing(key, rate, max(0, left - 1), max(1, math.ceil(wait_s - ROUNDED)), left > 0)
