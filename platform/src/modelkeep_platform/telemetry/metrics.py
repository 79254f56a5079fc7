"""Metrics: counted in memory while requests are served, in a registry of this process.

Labels are templates, codes and opaque ids from closed or bounded sets, never a name or an input: whoever may read the
metrics learns how much each tenant does, and nothing of what. `TENANTS` tenants have series of their own; all further
ones share the label `other`, so that nobody can fill the memory with series.
"""

from typing import Final, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from modelkeep_platform.core.ids import TenantId

TENANTS: Final = 200
OTHER: Final = "other"
_Metric = TypeVar("_Metric", bound=MetricWrapperBase)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


class Metrics:
    """What this process counts.

    Args:
        tenants: how many tenants have series of their own.
    """

    def __init__(self, *, tenants: int = TENANTS) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: when it began, which nobody asks for
        self.registry = CollectorRegistry()
        self._most = tenants
        self._known: dict[TenantId, str] = {}
        self._series: dict[tuple[MetricWrapperBase, tuple[str, ...]], MetricWrapperBase] = {}
        self._requests = Histogram(
            "modelkeep_request_seconds",
            "Requests by route and status, and how long each took, the sending of the answer included.",
            ("route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._of_tenant = Counter(
            "modelkeep_tenant_requests",
            "Requests of each tenant whose token verified; 200 tenants by id, the others together.",
            ("tenant",),
            registry=self.registry,
        )
        self._predictions = Counter(
            "modelkeep_predictions",
            "Predictions by outcome: done, refused (4xx) or failed (5xx).",
            ("outcome",),
            registry=self.registry,
        )
        self._limited = Counter(
            "modelkeep_limited",
            "Requests refused by a limit, by the code of the error.",
            ("code",),
            registry=self.registry,
        )
        self._strangers = Counter(
            "modelkeep_strangers_refused",
            "Refusals of requests without a token that verifies, by status.",
            ("status",),
            registry=self.registry,
        )
        self._connections = Counter(
            "modelkeep_connections_refused",
            "Connections closed at once, because there were too many: of all, or of one source.",
            ("limit",),
            registry=self.registry,
        )

    def collect(self, collector: Collector) -> None:
        """Add values that are read when they are asked for."""
        self.registry.register(collector)

    def request(self, route: str, status: int, seconds: float, tenant: TenantId | None) -> None:
        """Count a request that was served."""
        self._series_of(self._requests, route, str(status)).observe(seconds)
        if tenant is not None:
            self._series_of(self._of_tenant, self._label(tenant)).inc()

    def prediction(self, outcome: str) -> None:
        """Count a prediction."""
        self._series_of(self._predictions, outcome).inc()

    def limited(self, code: str) -> None:
        """Count a refusal by a limit."""
        self._limited.labels(code).inc()

    def stranger(self, status: int) -> None:
        """Count a refusal of somebody unknown."""
        self._strangers.labels(str(status)).inc()

    def connection_refused(self, limit: str) -> None:
        """Count a connection that was closed at once."""
        self._connections.labels(limit).inc()

    def _series_of(self, metric: _Metric, *labels: str) -> _Metric:
        # Looking a series up by its labels takes longer than counting; labels are of bounded sets.
        place = (metric, labels)
        known = self._series.get(place)
        if known is None:
            known = self._series[place] = metric.labels(*labels)
        return cast("_Metric", known)

    def _label(self, tenant: TenantId) -> str:
        known = self._known.get(tenant)
        if known is None:
            known = self._known[tenant] = str(tenant) if len(self._known) < self._most else OTHER
            if known == OTHER:
                del self._known[tenant]
        return known
