"""Counts by template, code and id; never more series than there is room for."""

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.telemetry.metrics import OTHER, Metrics


def test_tenants_past_the_bound_share_one_series() -> None:
    metrics = Metrics(tenants=2)
    for number in [0, 1, 2, 3, 0, 2]:
        metrics.request("GET /v1/models", 200, 0.01, TenantId(f"tenant-{number}"))

    def count(tenant: str) -> float | None:
        return metrics.registry.get_sample_value("modelkeep_tenant_requests_total", {"tenant": tenant})

    assert (count("tenant-0"), count("tenant-1"), count("tenant-2"), count(OTHER)) == (2.0, 1.0, None, 3.0)
    assert len(metrics._known) == 2


def test_a_request_is_counted_with_its_time_and_a_strangers_belongs_to_no_tenant() -> None:
    metrics = Metrics()
    metrics.request("GET /v1/models", 200, 0.02, TenantId("t"))
    metrics.request("GET /v1/models", 401, 0.0005, None)
    read = metrics.registry.get_sample_value
    labels = {"route": "GET /v1/models", "status": "200"}
    assert read("modelkeep_request_seconds_sum", labels) == 0.02
    assert read("modelkeep_request_seconds_bucket", {**labels, "le": "0.01"}) == 0.0
    assert read("modelkeep_request_seconds_bucket", {**labels, "le": "0.025"}) == 1.0
    assert read("modelkeep_request_seconds_count", {**labels, "status": "401"}) == 1.0
    assert read("modelkeep_tenant_requests_total", {"tenant": "t"}) == 1.0


def test_two_platforms_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.prediction("done")
    first.limited("rate_limited")
    first.stranger(401)
    first.connection_refused("all")
    for name, labels in (
        ("modelkeep_predictions_total", {"outcome": "done"}),
        ("modelkeep_limited_total", {"code": "rate_limited"}),
        ("modelkeep_strangers_refused_total", {"status": "401"}),
        ("modelkeep_connections_refused_total", {"limit": "all"}),
    ):
        assert first.registry.get_sample_value(name, labels) == 1.0
        assert second.registry.get_sample_value(name, labels) is None
