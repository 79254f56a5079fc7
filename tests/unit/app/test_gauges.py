"""Metrics that are read when somebody asks: seldom, without the database too, and on a listener of their own."""

import socket

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError

from fakes.core import ACME, GLOBEX, FakeClock
from modelkeep_platform.app.gauges import Gauges, Live
from modelkeep_platform.app.metrics_server import MetricsServer
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import tenants
from modelkeep_platform.storage.tables.uploads import uploads
from modelkeep_platform.telemetry import metrics
from services.house import free_port


def open_upload(database: Database, tenant: str, number: int, size_bytes: int) -> None:
    with database.platform() as tx:
        values = {
            "kind": "model",
            "object_id": "mdl",
            "version": 1,
            "purpose": "weights",
            "sha256": "",
            "state": "open",
        }
        times = {"created_at": 0, "expires_at": 0, "principal": "p"}
        row = {"tenant_id": tenant, "id": f"upl_{number}", "size_bytes": size_bytes, **values, **times}
        tx.execute(sa.insert(uploads).values(**row))


class Read:
    """A registry with the gauges."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.waiting, self.registry = 3, CollectorRegistry()
        live = (Live("modelkeep_predictions_waiting", "Waiting.", lambda: self.waiting),)
        self.registry.register(Gauges(database=database, clock=clock, live=live, dropped=lambda: 2))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def read(database: Database, clock: FakeClock) -> Read:
    with database.platform() as tx:
        for tenant in (ACME, GLOBEX):
            values = {"id": tenant, "slug": tenant[:8], "name": "", "state": "active", "created_at": 0}
            tx.execute(sa.insert(tenants).values(**values))
    return Read(database, clock)


def test_what_is_stored_is_read_every_ten_seconds_and_what_lives_each_time(
    read: Read, database: Database, clock: FakeClock
) -> None:
    open_upload(database, ACME, 1, 100)
    assert read.value("modelkeep_stored_bytes", kind="uploads") == 100
    open_upload(database, GLOBEX, 2, 50)
    read.waiting = 4
    clock.advance(9)
    assert read.value("modelkeep_stored_bytes", kind="uploads") == 100
    assert read.value("modelkeep_predictions_waiting") == 4
    clock.advance(1)
    assert read.value("modelkeep_stored_bytes", kind="uploads") == 150
    assert read.value("modelkeep_tenant_stored_bytes", tenant=GLOBEX) == 50
    assert read.value("modelkeep_jobs", state="queued") == 0
    assert read.value("modelkeep_audit_unintegrated") == 0
    assert read.value("modelkeep_log_lines_dropped_total") == 2


def test_only_the_largest_tenants_have_series(read: Read, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkeep_platform.app.gauges.TENANTS", 1)
    open_upload(database, ACME, 1, 100)
    open_upload(database, GLOBEX, 2, 250)
    assert read.value("modelkeep_tenant_stored_bytes", tenant=GLOBEX) == 250
    assert read.value("modelkeep_tenant_stored_bytes", tenant=ACME) is None
    assert read.value("modelkeep_tenant_stored_bytes", tenant=metrics.OTHER) == 100


def test_without_the_database_what_lives_is_still_shown(
    read: Read, database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise OperationalError("SELECT", {}, Exception())

    monkeypatch.setattr(database, "platform", broken)
    assert read.value("modelkeep_jobs", state="queued") is None
    assert read.value("modelkeep_predictions_waiting") == 3
    monkeypatch.undo()
    clock.advance(10)
    assert read.value("modelkeep_jobs", state="queued") == 0


def test_a_listener_serves_its_registry_and_ends(read: Read) -> None:
    port = free_port()
    server = MetricsServer(read.registry, host="127.0.0.1", port=port)
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    server.close()
    assert "modelkeep_predictions_waiting 3.0" in text
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_a_port_that_is_taken_is_said(read: Read) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError) as caught:
            MetricsServer(read.registry, host="127.0.0.1", port=port)
    assert caught.value.error_code == "metrics_unavailable"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9100", 200),
        ("localhost:9100", 200),
        ("[::1]:9100", 200),
        ("rebound.example:9100", 421),
        ("127.0.0.1.rebound.example", 421),
        ("localhost@rebound.example", 421),
        ("169.254.169.254", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_a_request_that_names_this_machine_reads_metrics(read: Read, host: str, status: int) -> None:
    port = free_port()
    server = MetricsServer(read.registry, host="127.0.0.1", port=port)
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"host": host}, timeout=10)
    finally:
        server.close()
    assert answer.status_code == status
    assert ("modelkeep_build" in answer.text) == (status == 200)
