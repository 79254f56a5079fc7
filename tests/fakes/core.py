"""Fakes of the ports in `core`: decided time, repeatable entropy, a recorder that remembers, a sealer without keys."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, OperatorCaller, PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.decisions import Attributes, Decision
from modelkeep_platform.core.errors import ForbiddenError, IntegrityError, NotFoundError
from modelkeep_platform.core.events import Event
from modelkeep_platform.core.ids import ObjectId, PrincipalId, RequestId, TenantId
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.core.ports import Transaction
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.core.sealing import Purpose, Suite


class FakeClock:
    """Stands still until `advance`."""

    def __init__(self, now_s: float = 1_800_000_000) -> None:
        self.time_s = float(now_s)

    def now_s(self) -> int:
        return int(self.time_s)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.time_s, UTC)

    def monotonic_s(self) -> float:
        return self.time_s

    def not_before(self, seconds: int) -> None:
        self.time_s = max(self.time_s, float(seconds))

    def advance(self, seconds: float) -> None:
        self.time_s += seconds


class FakeEntropy:
    """A repeatable stream of bytes."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._count = 0

    def random_bytes(self, count: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(f"{self._seed}/{self._count}".encode()).digest(count)


class FakeRecorder:
    """Remembers events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, tx: Transaction, event: Event) -> None:
        self.events.append(event)

    def record_soon(self, event: Event) -> None:
        self.events.append(event)


class FakeEpoch:
    """An epoch that moves when refreshed."""

    def __init__(self) -> None:
        self.number = 1

    def current(self) -> int:
        return self.number

    def last_known(self) -> int:
        return self.number

    def refresh(self) -> None:
        self.number += 1


class FakeLimits:
    """The same limits for every tenant, but for those of `own`; never read from anywhere."""

    def __init__(self, **limits: int) -> None:
        self.defaults = TenantLimits(**limits)
        self.own: dict[TenantId, TenantLimits] = {}
        self.known = True

    def of(self, tenant: TenantId) -> TenantLimits:
        return self.own.get(tenant, self.defaults)

    def cached(self, tenant: TenantId) -> TenantLimits | None:
        return self.of(tenant) if self.known else None

    def last_known(self, tenant: TenantId) -> TenantLimits:
        return self.of(tenant)


class FakeAuthorizer:
    """Allows the owner, and whom `granted` names, what `rule` does not refuse; foreign and missing look the same."""

    def __init__(self, rule: Callable[[Caller, Action, ResourceRef], bool] | None = None) -> None:
        self.rule = rule or (lambda _caller, _action, _ref: True)
        self.granted: set[tuple[TenantId, Action, ObjectId]] = set()
        self.asked: list[tuple[Action, ResourceRef]] = []
        self.names: list[tuple[Action, object]] = []

    def require(
        self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None
    ) -> Decision:
        self.asked.append((action, ref))
        self.names.append((action, (attributes or {}).get("name", "")))
        if not self._visible(caller, action, ref):
            raise NotFoundError("there is no such object, or you may not see it")
        if not self.rule(caller, action, ref):
            raise ForbiddenError("policy denies this", details={"reasons": ["test rule"]})
        return Decision(allow=True, action=action, ref=ref, caller_tenant=caller.tenant)

    def allows(self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None) -> bool:
        return self._visible(caller, action, ref) and self.rule(caller, action, ref)

    def _visible(self, caller: Caller, action: Action, ref: ResourceRef) -> bool:
        own = ref.owner == caller.tenant
        return not ref.is_missing and (own or (caller.tenant, action, ref.object_id) in self.granted)


class FakeSealer:
    """Binds bytes to their context with a digest; hides nothing (for tests of everything but keys)."""

    def __init__(self) -> None:
        self.keys: set[tuple[TenantId, ObjectId]] = set()

    def create_tenant_key(self, tx: Transaction, tenant: TenantId) -> None:
        pass

    def create_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        self.keys.add((owner, object_id))

    def seal(
        self,
        owner: TenantId,
        object_id: ObjectId,
        plaintext: bytes | memoryview,
        *,
        purpose: Purpose,
        version: int,
        name: str,
        suite: Suite,
    ) -> bytes:
        if (owner, object_id) not in self.keys:
            raise IntegrityError("no key")
        return self._tag(owner, object_id, purpose, version, name, suite, bytes(plaintext)) + bytes(plaintext)

    def open(
        self,
        owner: TenantId,
        object_id: ObjectId,
        sealed: bytes | memoryview,
        *,
        purpose: Purpose,
        version: int,
        name: str,
        suite: Suite,
    ) -> bytes:
        tag, plaintext = bytes(sealed[:32]), bytes(sealed[32:])
        if tag != self._tag(owner, object_id, purpose, version, name, suite, plaintext):
            raise IntegrityError("the sealed bytes do not authenticate")
        if (owner, object_id) not in self.keys:
            raise IntegrityError("no key")
        return plaintext

    def destroy_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        self.keys.discard((owner, object_id))

    @staticmethod
    def _tag(*context: object) -> bytes:
        return hashlib.sha256(repr(context).encode()).digest()


ACME = TenantId("aaaaaaaa-0000-4000-8000-000000000001")
GLOBEX = TenantId("bbbbbbbb-0000-4000-8000-000000000002")


def tenant_caller(
    tenant: TenantId = ACME, *roles: Role, name: str = "app", kind: PrincipalKind = PrincipalKind.USER
) -> TenantCaller:
    """A caller of `tenant`, by default a tenant administrator."""
    return TenantCaller(
        tenant=tenant,
        principal=PrincipalId(f"principal-{name}"),
        principal_kind=kind,
        name=name,
        roles=frozenset(roles or (Role.TENANT_ADMIN,)),
        token_id="token-1",
        request_id=RequestId("request-1"),
    )


def operator_caller() -> OperatorCaller:
    """The platform's operator."""
    return OperatorCaller(
        principal=PrincipalId("operator"), name="operator", token_id="token-op", request_id=RequestId("request-op")
    )
