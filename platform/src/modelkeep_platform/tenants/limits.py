"""What a tenant may have and has: its operator sets it, its own people read it.

Setting a limit takes nothing away: below what is there already it only lets nothing more in. Not shown is the use of
what is counted in the memory of each server process alone (requests, those under way): answers say that by themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import OperatorCaller, TenantCaller
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.limits import LIMITS, check_limit
from modelkeep_platform.core.ports import Authorizer, Clock, EpochSource, Recorder
from modelkeep_platform.identity.registry import Tenant, TenantRegistry
from modelkeep_platform.limits.store import LimitStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System, TenantTransaction
from modelkeep_platform.tenants.operators import done, find, tenant_ref

_LOOK = System(reason="show what a tenant has")
DEFAULT = "default"
"""What the log says of a limit that was taken back."""

Usage: TypeAlias = Mapping[str, Callable[[TenantTransaction], int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of a tenant.

    Args:
        value: what holds.
        default: what the settings say for every tenant.
        own: whether the operator set it for this one.
        used: how much of it is used; None where no count is kept.
    """

    value: int
    default: int
    own: bool
    used: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDetails:
    """A tenant with its limits, by name."""

    id: str
    slug: str
    name: str
    state: str
    created_at: int
    limits: dict[str, Limit]


class TenantLimitService:
    """Shows and sets limits.

    Args:
        database: where tenants have what they have.
        registry: the tenants there are.
        store: their limits.
        usage: counts, by the limit's name, what a tenant has.
        authorizer: decides who may.
        recorder: writes what was set.
        epoch: moved by each change.
        clock: stamps it.
    """

    def __init__(
        self,
        *,
        database: Database,
        registry: TenantRegistry,
        store: LimitStore,
        usage: Usage,
        authorizer: Authorizer,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
    ) -> None:
        self._database = database
        self._registry = registry
        self._store = store
        self._usage = usage
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock

    def show_own(self, caller: TenantCaller) -> TenantDetails:
        """Return the caller's own tenant.

        Raises:
            ForbiddenError: the caller may not.
        """
        self._authorizer.require(caller, Action.TENANT_READ, tenant_ref(caller.tenant))
        tenant = self._registry.by_id(caller.tenant)
        if tenant is None:
            raise RuntimeError("a caller is of a tenant that is not there")
        return self._details(tenant)

    def show(self, caller: OperatorCaller, slug: str) -> TenantDetails:
        """Return a tenant.

        Raises:
            NotFoundError: there is no such tenant.
        """
        return self._details(find(self._registry, self._authorizer, caller, slug, Action.TENANT_LIST))

    def change(self, caller: OperatorCaller, slug: str, changes: Mapping[str, int | None]) -> TenantDetails:
        """Set limits of one tenant, or take them back; they hold for the next call, on every server process.

        Args:
            caller: the operator.
            slug: whose.
            changes: by the limit's name, a number, or None for what the settings say.

        Raises:
            NotFoundError: there is no such tenant.
            UnprocessableError: none is named, one is not known, or cannot be that number; nothing was changed.
        """
        tenant = find(self._registry, self._authorizer, caller, slug, Action.TENANT_LIMIT)
        if not changes:
            raise UnprocessableError(f"name a limit to set; known are {', '.join(LIMITS)}", code="invalid_limit")
        for name, value in changes.items():
            check_limit(name, value)
        with self._database.platform() as tx:
            self._store.change(tx.as_tenant(tenant.id), changes, by=caller.principal, at=self._clock.now_s())
            facts = {name: DEFAULT if value is None else value for name, value in changes.items()}
            self._recorder.record(tx, done(caller, Action.TENANT_LIMIT, tenant, facts))
            tx.bump_epoch()
        self._epoch.refresh()
        return self._details(tenant)

    def _details(self, tenant: Tenant) -> TenantDetails:
        with self._database.tenant(tenant.id, by=_LOOK, read_only=True) as tx:
            own = self._store.own(tx)
            used = {name: count(tx) for name, count in self._usage.items()}
        limits = {}
        for name in LIMITS:
            default = getattr(self._store.defaults, name)
            limits[name] = Limit(value=own.get(name, default), default=default, own=name in own, used=used.get(name))
        return TenantDetails(
            id=tenant.id,
            slug=tenant.slug,
            name=tenant.name,
            state=tenant.state,
            created_at=tenant.created_at,
            limits=limits,
        )
