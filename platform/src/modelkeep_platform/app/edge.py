"""The protocols, over the rooms: limits, both planes, the issuer's pages, health and metrics."""

from collections.abc import Callable

from starlette.types import ASGIApp

from modelkeep_platform.app.gauges import Gauges, Live
from modelkeep_platform.app.ground import Ground
from modelkeep_platform.app.health import Health
from modelkeep_platform.app.rooms import Rooms
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.http.connection import Connections
from modelkeep_platform.http.gateway import Gateway
from modelkeep_platform.http.idempotency import IdempotencyStore
from modelkeep_platform.http.issuer import issuer_routes
from modelkeep_platform.http.management import Management
from modelkeep_platform.http.v1 import all_endpoints
from modelkeep_platform.http.v2 import DataPlane
from modelkeep_platform.http.watch import Watch
from modelkeep_platform.limits.service import RequestLimits
from modelkeep_platform.telemetry.metrics import Metrics


class Edge:
    """What faces the network.

    Args:
        ground: what everything stands on.
        rooms: what is served.
        settings: what the installation is set to.
        dropped_lines: how many lines of the server's own log were dropped, for the metrics.
    """

    def __init__(self, ground: Ground, rooms: Rooms, *, settings: Settings, dropped_lines: Callable[[], int]) -> None:
        self._ground = ground
        self._rooms = rooms
        self.metrics = Metrics()
        self.connections = Connections(
            most=settings.max_connections,
            of_source=settings.source_connections,
            refused=self.metrics.connection_refused,
        )
        self.endpoints = all_endpoints(
            tenants=rooms.tenants,
            tenant_limits=rooms.tenant_limits,
            issuer_keys=rooms.issuer_keys,
            members=rooms.members,
            service_accounts=rooms.service_accounts,
            registry=rooms.registry,
            models=rooms.models,
            admission=rooms.admission,
            datasets=rooms.datasets,
            uploads=rooms.uploads,
            training=rooms.training,
            grants=rooms.grants,
            policies=rooms.policies,
            audit=rooms.audit,
            base_url=settings.base_url,
        )
        self.requests = RequestLimits(
            database=ground.database,
            clock=ground.clock,
            limits=ground.limits,
            process_id=ground.process_id,
            others=lambda: ground.epoch.others,
        )
        self.health = Health(
            {
                "the policy epoch cannot be read": ground.epoch.current,
                "the audit log takes no entries": lambda: ground.log.accepting,
                "the root key cannot be used": lambda: ground.keys.check_root(PLATFORM),
                "the disk is full": ground.disk.has_room,
            },
            clock=ground.clock,
        )
        self.asgi: ASGIApp = Gateway(
            management=self._management(settings),
            data_plane=self._data_plane(settings),
            entropy=ground.entropy,
            notes=ground.refusals,
            on_shutdown=rooms.serving.close,
            watch=Watch(self.metrics),
            has_room=ground.disk.has_room,
        )
        live = self._live()
        self.metrics.collect(Gauges(database=ground.database, clock=ground.clock, live=live, dropped=dropped_lines))

    def _management(self, settings: Settings) -> ASGIApp:
        ground, rooms = self._ground, self._rooms
        kept = IdempotencyStore(database=ground.database, clock=ground.clock, limits=ground.limits)
        management = Management(
            endpoints=self.endpoints,
            authenticator=rooms.authenticator,
            idempotency=kept,
            base_url=settings.base_url,
            limits=self.requests,
            unacknowledged=ground.epoch.unacknowledged,
            notes=ground.refusals,
        )
        pages = issuer_routes(
            issuer=rooms.issuer,
            tenants=rooms.tenants,
            base_url=settings.base_url,
            entropy=ground.entropy,
            unacknowledged=ground.epoch.unacknowledged,
        )
        return management.app(pages)

    def _data_plane(self, settings: Settings) -> ASGIApp:
        ground, rooms = self._ground, self._rooms
        return DataPlane(
            authenticator=rooms.authenticator,
            models=rooms.models,
            serving=rooms.serving,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
            limits=self.requests,
            base_url=settings.base_url,
            notes=ground.refusals,
            ready=self.health.ready,
        )

    def _live(self) -> tuple[Live, ...]:
        ground, serving, disk = self._ground, self._rooms.serving, self._ground.disk
        return (
            Live("modelkeep_predictions_waiting", "Predictions that wait for a worker.", lambda: serving.waiting),
            Live("modelkeep_workers_alive", "Worker processes that serve predictions.", lambda: serving.alive),
            Live("modelkeep_requests_under_way", "Requests that hold a place.", lambda: self.requests.under_way),
            Live("modelkeep_connections", "Open connections.", lambda: self.connections.open),
            Live("modelkeep_audit_queued", "Audit entries in memory, not committed.", lambda: ground.log.queued),
            Live("modelkeep_epoch_age_seconds", "Since the policy epoch was last read.", lambda: ground.epoch.age_s),
            Live("modelkeep_server_processes", "Server processes that are alive.", lambda: ground.epoch.processes),
            Live("modelkeep_ready", "1 when the server should get requests.", lambda: not self.health.reasons()),
            Live("modelkeep_disk_free_bytes", "Free on the data folder's disk.", disk.free_bytes),
            Live("modelkeep_disk_reserve_bytes", "Kept of it for the log.", lambda: disk.reserve_bytes),
        )
