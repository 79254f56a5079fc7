"""Metrics that are read when somebody asks: what waits, what is stored, how old the epoch is.

What stands in the database is the same from every server process (take the `max` of them, not the sum) and is read at
most every ten seconds, however often it is asked for. When the database cannot be read those series are absent.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform import __version__
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.jobs.queue import JobState
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.audit import audit_entries
from modelkeep_platform.storage.tables.identity import tenants
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.transactions import PlatformTransaction
from modelkeep_platform.telemetry.metrics import OTHER, TENANTS
from modelkeep_platform.uploads.usage import stored_bytes

_KEPT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Live:
    """One value of this process."""

    name: str
    help: str
    read: Callable[[], float]


@dataclass(slots=True)
class _Stored:
    jobs: dict[str, int] = field(default_factory=dict)
    unintegrated: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)


class Gauges(Collector):
    """Reads them.

    Args:
        database: what is stored.
        clock: tells how old the last reading is.
        live: values of this process.
        dropped: how many log lines were dropped.
    """

    def __init__(self, *, database: Database, clock: Clock, live: tuple[Live, ...], dropped: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._live = live
        self._dropped = dropped
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._stored: _Stored | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        about = GaugeMetricFamily("modelkeep_build", "The version that runs; always 1.", labels=["version"])
        about.add_metric([__version__], 1)
        yield about
        for one in self._live:
            yield GaugeMetricFamily(one.name, one.help, value=one.read())
        yield CounterMetricFamily(
            "modelkeep_log_lines_dropped", "Lines that were not written, because nobody read.", value=self._dropped()
        )
        stored = self._current()
        if stored is not None:
            yield from _families(stored)

    def describe(self) -> Iterator[Metric]:
        """Name nothing in advance: registering must not read the database."""
        return iter(())

    def _current(self) -> _Stored | None:
        with self._lock:
            now = self._clock.monotonic_s()
            if now - self._read_at >= _KEPT_S:
                self._read_at = now
                try:
                    with self._database.platform(read_only=True) as tx:
                        self._stored = _read(tx)
                except SQLAlchemyError:
                    self._stored = None
            return self._stored


def _read(tx: PlatformTransaction) -> _Stored:
    found = _Stored(jobs={str(state): 0 for state in JobState})
    for row in tx.all(sa.select(jobs.c.state, sa.func.count().label("n")).group_by(jobs.c.state)):
        found.jobs[row["state"]] = row["n"]
    waiting = tx.first(sa.select(sa.func.count().label("n")).where(audit_entries.c.log_index.is_(None)))
    found.unintegrated = 0 if waiting is None else waiting["n"]
    totals: dict[str, int] = {}
    for row in tx.all(sa.select(tenants.c.id)):
        kinds = stored_bytes(tx.as_tenant(TenantId(row["id"])))
        totals[row["id"]] = sum(kinds.values())
        for kind, size in kinds.items():
            found.kinds[kind] = found.kinds.get(kind, 0) + size
    largest = sorted(totals.items(), key=lambda one: -one[1])
    found.tenants = dict(largest[:TENANTS])
    if largest[TENANTS:]:
        found.tenants[OTHER] = sum(size for _, size in largest[TENANTS:])
    return found


def _families(stored: _Stored) -> Iterator[Metric]:
    by_state = GaugeMetricFamily("modelkeep_jobs", "Jobs by state, of all tenants.", labels=["state"])
    for state, count in stored.jobs.items():
        by_state.add_metric([state], count)
    yield by_state
    yield GaugeMetricFamily(
        "modelkeep_audit_unintegrated", "Audit entries committed but not in the tree yet.", value=stored.unintegrated
    )
    by_kind = GaugeMetricFamily("modelkeep_stored_bytes", "What tenants occupy, by kind of thing.", labels=["kind"])
    for kind, size in stored.kinds.items():
        by_kind.add_metric([kind], size)
    yield by_kind
    by_tenant = GaugeMetricFamily(
        "modelkeep_tenant_stored_bytes",
        "What each tenant occupies, of its limit; the 200 largest by id, the others together.",
        labels=["tenant"],
    )
    for tenant, size in stored.tenants.items():
        by_tenant.add_metric([tenant], size)
    yield by_tenant
