"""What a call left behind: rows, entries of every tenant's log, and the count of strangers."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import sqlalchemy as sa

from modelkeep_platform.audit.strangers import STRANGERS
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.audit import audit_entries
from modelkeep_platform.storage.tables.identity import tenants
from services.house import House, wait_until

MOVING = {"request_buckets", "request_places", "server_processes"}
"""Tables that move by themselves, or with every call.

Not the epoch, with which everybody's caches go, and not the Idempotency-Keys: a refused call leaves neither.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log, whosoever it is: `tenant` is a slug, or `platform`."""

    tenant: str
    action: str
    outcome: str
    facts: dict[str, Any]


def rows_of(database: Database, *, moving: Collection[str] = MOVING) -> dict[str, list[str]]:
    """Return all rows but those of the log and of what is `moving`."""
    kept = [table for name, table in metadata.tables.items() if name not in moving and "audit" not in name]
    with database.platform(read_only=True) as tx:
        return {table.name: sorted(map(repr, map(dict, tx.all(sa.select(table))))) for table in kept}


class Evidence:
    """Reads a house's database past every service."""

    def __init__(self, house: House) -> None:
        self._platform = house.server.platform

    def state(self) -> dict[str, list[str]]:
        """Return all rows but those of the log and of what moves by itself."""
        return rows_of(self._platform.ground.database)

    def entries(self, request_id: str) -> list[Entry]:
        """Return the entries of a request in all logs, in order."""
        return self._entries(audit_entries.c.request_id == request_id)

    def recorded(self, answer: httpx.Response) -> list[tuple[str, str, str]]:
        """Return whose log has what outcome of a call, and why it was refused or failed."""
        found = self.entries(answer.headers["x-request-id"])
        return [(one.tenant, one.outcome, str(one.facts.get("reason") or one.facts.get("error"))) for one in found]

    def strangers(self, status: int = 401) -> int:
        """Return how many were refused with `status` before anybody was known."""
        registry = self._platform.edge.metrics.registry
        return int(registry.get_sample_value("modelkeep_strangers_refused_total", {"status": str(status)}) or 0)

    @contextmanager
    def strangers_counted(self, count: int, status: int = 401) -> Iterator[None]:
        """Assert that what is done changes nothing, and is counted as `count` strangers refused with `status`."""
        before = self.strangers(status)
        with self.nothing_changes():
            yield
        # A request is counted when its answer is out.
        wait_until(lambda: self.strangers(status) - before >= count, "the strangers to be counted")
        assert self.strangers(status) - before == count

    def summaries_of_strangers(self) -> list[Entry]:
        """Write the counts of strangers to the platform's log now; return all that it has."""
        self._platform.ground.refusals.sweep(unfinished=True)
        self._platform.ground.log.flush()
        return [one for one in self._entries(audit_entries.c.tenant == PLATFORM) if one.action == STRANGERS]

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """Assert that what is done leaves every row as it was."""
        before = self.state()
        yield
        after = self.state()
        changed = {table: set(rows) ^ set(after[table]) for table, rows in before.items() if after[table] != rows}
        assert not changed, str(changed)[:2000]

    def _entries(self, where: sa.ColumnElement[bool]) -> list[Entry]:
        self._platform.ground.log.flush()
        with self._platform.ground.database.platform(read_only=True) as tx:
            slugs = {row["id"]: row["slug"] for row in tx.all(sa.select(tenants))}
            rows = tx.all(sa.select(audit_entries).where(where).order_by(audit_entries.c.seq))
        bodies = [(row["tenant"], json.loads(row["body"])) for row in rows]
        return [Entry(str(slugs.get(of, of)), body["action"], body["outcome"], body["facts"]) for of, body in bodies]
