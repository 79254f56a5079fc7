"""What a call left behind: rows, entries of every tenant's log, and the count of strangers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.audit import audit_entries
from modelkeep_platform.storage.tables.identity import tenants
from services.house import House

MOVING = {"request_buckets", "request_places", "server_processes", "idempotency", "epoch"}
"""Tables that move by themselves, or with every call."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log, whosoever it is: `tenant` is a slug, or `platform`."""

    tenant: str
    action: str
    outcome: str
    facts: dict[str, Any]


class Evidence:
    """Reads a house's database past every service."""

    def __init__(self, house: House) -> None:
        self._platform = house.server.platform

    def state(self) -> dict[str, list[str]]:
        """Return all rows but those of the log and of what moves by itself."""
        kept = [table for name, table in metadata.tables.items() if name not in MOVING and "audit" not in name]
        with self._platform.ground.database.platform(read_only=True) as tx:
            return {table.name: sorted(map(repr, map(dict, tx.all(sa.select(table))))) for table in kept}

    def entries(self, request_id: str) -> list[Entry]:
        """Return the entries of a request in all logs, in order."""
        self._platform.ground.log.flush()
        query = sa.select(audit_entries).where(audit_entries.c.request_id == request_id)
        with self._platform.ground.database.platform(read_only=True) as tx:
            slugs = {row["id"]: row["slug"] for row in tx.all(sa.select(tenants))}
            rows = tx.all(query.order_by(audit_entries.c.seq))
        bodies = [(row["tenant"], json.loads(row["body"])) for row in rows]
        return [Entry(slugs.get(of, of), body["action"], body["outcome"], body["facts"]) for of, body in bodies]

    def strangers(self, status: int = 401) -> int:
        """Return how many were refused with `status` before anybody was known."""
        registry = self._platform.edge.metrics.registry
        return int(registry.get_sample_value("modelkeep_strangers_refused_total", {"status": str(status)}) or 0)

    @contextmanager
    def nothing_changes(self) -> Iterator[None]:
        """Assert that what is done leaves every row as it was."""
        before = self.state()
        yield
        assert self.state() == before
