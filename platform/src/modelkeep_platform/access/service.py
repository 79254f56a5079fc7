"""The authorizer: guard, grants, roles and tenants' own policies, in one decision with its reasons.

Within a tenant: the guard, the role policies and the tenant's own policies must together permit and none may forbid.
Across tenants two sides must both allow: the owner's (guard, grant, owner's policies) and the caller's (roles and its
own tenant's policies). Owner and grant are checked in Python before Cedar is asked. What is foreign and not
granted is refused exactly like what does not exist. A policy that fails while it is evaluated denies, and says so in
the server's log.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from modelkeep_platform.access.engine import Context, Opinion, Question, Verdict, question
from modelkeep_platform.access.refusals import RefusalLog
from modelkeep_platform.access.shipped import OWN_SIDE, OWNER_SIDE, ShippedPolicies
from modelkeep_platform.access.store import AccessStore, ActiveGrant
from modelkeep_platform.core.actions import PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Caller, OperatorCaller, TenantCaller
from modelkeep_platform.core.decisions import Attributes, Decision
from modelkeep_platform.core.errors import CallerError, ForbiddenError, NotFoundError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock, EpochSource, Recorder
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.storage.database import Database
from modelkeep_platform.telemetry.logs import fields

NOT_FOUND: Final = "there is no such object, or you may not see it"
_log = logging.getLogger(__name__)
_CACHED: Final = 8192
_NOTHING: Final[Attributes] = {}


@dataclass(frozen=True, slots=True)
class _Cached:
    epoch: int
    decision: Decision
    expires_at: int | None


class PolicyAuthorizer:
    """Implements the `Authorizer` port.

    Args:
        database: where refusals are recorded.
        store: reads policies and grants.
        recorder: writes refusals.
        epoch: what cached decisions live by.
        clock: ends grants.
        refusals_per_minute: says how many refusals of a tenant are entries of their own each minute.
    """

    def __init__(
        self,
        *,
        database: Database,
        store: AccessStore,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        refusals_per_minute: Callable[[TenantId], int],
    ) -> None:
        self._store = store
        self._refusals = RefusalLog(database=database, recorder=recorder, clock=clock, per_window=refusals_per_minute)
        self._epoch = epoch
        self._clock = clock
        self._own_side = ShippedPolicies(OWN_SIDE)
        self._owner_side = ShippedPolicies(OWNER_SIDE)
        self._decisions: OrderedDict[tuple[object, ...], _Cached] = OrderedDict()
        self._lock = threading.Lock()

    def require(
        self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None
    ) -> Decision:
        """Return an allow decision or raise; a refusal is recorded before it is raised.

        Raises:
            NotFoundError: missing, or foreign and not granted.
            ForbiddenError: denied; `details` holds reasons and policies.
        """
        facts = attributes or _NOTHING
        known = self.cached(caller, action, ref, facts)
        if known is not None:
            return known
        epoch = self._epoch.current()
        decision, refusal, expires_at = self._decide(caller, action, ref, facts)
        if refusal is not None:
            self._refusals.record(caller, decision)
            raise refusal
        with self._lock:
            self._decisions[_key(caller, action, ref, facts)] = _Cached(epoch, decision, expires_at)
            while len(self._decisions) > _CACHED:
                self._decisions.popitem(last=False)
        return decision

    def allows(self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None) -> bool:
        """Return whether `require` would pass; records nothing."""
        facts = attributes or _NOTHING
        known = self.cached(caller, action, ref, facts)
        return known is not None or self._decide(caller, action, ref, facts)[1] is None

    def record_counts(self) -> None:
        """Record how many refusals of minutes that are over were not recorded singly; raises StorageError."""
        self._refusals.flush(unfinished=False)

    def close(self) -> None:
        """Record every count of refusals that were not recorded singly; raises StorageError."""
        self._refusals.flush()

    def cached(self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes) -> Decision | None:
        """Return an allow decision made before in this epoch, from memory alone."""
        found = self._decisions.get(_key(caller, action, ref, attributes))
        if found is None or found.epoch != self._epoch.current():
            return None
        if found.expires_at is not None and found.expires_at <= self._clock.now_s():
            return None
        return found.decision

    def _decide(
        self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes
    ) -> tuple[Decision, CallerError | None, int | None]:
        if isinstance(caller, OperatorCaller) and (action not in PLATFORM_ACTIONS or ref.owner != caller.tenant):
            reason = "operators run the platform; they have no access to what belongs to tenants"
            return self._refused(caller, action, ref, (reason,), code="operator_forbidden")
        asked = partial(question, caller, action, ref, attributes)
        if ref.owner != caller.tenant:
            return self._decide_foreign(caller, action, ref, asked)
        if ref.is_missing:
            return self._missing(caller, action, ref)
        return self._decide_own(caller, action, ref, asked(granted=frozenset()))

    def _decide_own(
        self, caller: Caller, action: Action, ref: ResourceRef, asked: Question
    ) -> tuple[Decision, CallerError | None, int | None]:
        opinions = [self._own_side.opinion(asked)]
        version = 0
        if isinstance(caller, TenantCaller):
            version, opinion = self._tenants_opinion(asked, caller.tenant)
            opinions.append(opinion)
        return self._combined(caller, action, ref, opinions, (caller.tenant, version))

    def _decide_foreign(
        self, caller: Caller, action: Action, ref: ResourceRef, ask_with: Callable[..., Question]
    ) -> tuple[Decision, CallerError | None, int | None]:
        # What is missing is looked up like what is there: both take the same path and the same time.
        grants = self._store.grants_of(ref, caller.tenant, now_s=self._clock.now_s(), epoch=self._epoch.current())
        if ref.is_missing or not grants:
            return self._missing(caller, action, ref)
        fitting = [grant for grant in grants if action in grant.actions]
        if not fitting:
            return self._refused(caller, action, ref, (f"`{action}` is not granted on this object",))
        grant = max(fitting, key=lambda one: float("inf") if one.expires_at is None else one.expires_at)
        asked = ask_with(granted=frozenset({caller.tenant}))
        owners_version, owners = self._tenants_opinion(asked, ref.owner)
        callers_version, callers = self._tenants_opinion(asked, caller.tenant)
        owner_side = self._combined(
            caller, action, ref, [self._owner_side.opinion(asked), owners], (ref.owner, owners_version)
        )
        caller_side = self._combined(
            caller, action, ref, [self._own_side.opinion(asked), callers], (caller.tenant, callers_version)
        )
        for decision, refusal, _ in (owner_side, caller_side):
            if refusal is not None:
                return decision, refusal, None
        policies = tuple(sorted({*owner_side[0].policies, *caller_side[0].policies}))
        return _allowed(caller, action, ref, policies, owners_version, grant), None, grant.expires_at

    def _tenants_opinion(self, asked: Question, tenant: TenantId) -> tuple[int, Opinion]:
        active = self._store.active_policy(tenant, epoch=self._epoch.current())
        return active.version, active.opinion(asked)

    def _combined(
        self, caller: Caller, action: Action, ref: ResourceRef, opinions: list[Opinion], side: tuple[TenantId, int]
    ) -> tuple[Decision, CallerError | None, int | None]:
        tenant, version = side
        for opinion in opinions:
            if opinion.error is not None:
                # Not the engine's words: they repeat the policy's text, which is its tenant's.
                about = fields(tenant=tenant, action=str(action), reason=f"policy version {version}")
                _log.error("a policy failed while it was evaluated", extra=about)
        forbidding = [opinion for opinion in opinions if opinion.verdict is Verdict.FORBID]
        if forbidding:
            reasons = tuple(
                f"policy `{policy}` forbids it" for opinion in forbidding for policy in opinion.policies
            ) or ("a policy failed while it was evaluated",)
            policies = tuple(policy for opinion in forbidding for policy in opinion.policies)
            return self._refused(caller, action, ref, reasons, policies=policies, version=version)
        permitting = [opinion for opinion in opinions if opinion.verdict is Verdict.PERMIT]
        if not permitting:
            roles = "" if isinstance(caller, OperatorCaller) else ", ".join(sorted(caller.roles))
            reason = f"no policy permits `{action}` to the roles `{roles}`"
            return self._refused(caller, action, ref, (reason,), version=version)
        ids = tuple(sorted({policy for opinion in permitting for policy in opinion.policies}))
        return _allowed(caller, action, ref, ids, version, None), None, None

    def _missing(
        self, caller: Caller, action: Action, ref: ResourceRef
    ) -> tuple[Decision, CallerError | None, int | None]:
        decision = _denied(caller, action, ref, (), 0, ("not found",))
        return decision, NotFoundError(NOT_FOUND), None

    def _refused(
        self,
        caller: Caller,
        action: Action,
        ref: ResourceRef,
        reasons: tuple[str, ...],
        *,
        policies: tuple[str, ...] = (),
        version: int = 0,
        code: str = "forbidden",
    ) -> tuple[Decision, CallerError | None, int | None]:
        error = ForbiddenError(
            f"`{action}` is denied: {reasons[0]}; ask the tenant's administrator",
            code=code,
            details={"action": str(action), "reasons": list(reasons), "policies": list(policies)},
        )
        return _denied(caller, action, ref, policies, version, reasons), error, None


def _key(caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes) -> tuple[object, ...]:
    # INVARIANT: all that a question to Cedar holds is part of the key, tenants first.
    of = Context.of(attributes)
    if isinstance(caller, OperatorCaller):
        return (
            caller.tenant,
            "operator",
            caller.principal,
            caller.name,
            action,
            ref.owner,
            ref.kind,
            ref.object_id,
            of,
        )
    who = (caller.tenant, caller.principal_kind, caller.principal, caller.name, caller.roles)
    return (*who, action, ref.owner, ref.kind, ref.object_id, of)


def _allowed(
    caller: Caller,
    action: Action,
    ref: ResourceRef,
    policies: tuple[str, ...],
    version: int,
    grant: ActiveGrant | None,
) -> Decision:
    return Decision(
        allow=True,
        action=action,
        ref=ref,
        caller_tenant=caller.tenant,
        policies=policies,
        policy_version=version,
        grant_id=None if grant is None else grant.id,
    )


def _denied(
    caller: Caller,
    action: Action,
    ref: ResourceRef,
    policies: tuple[str, ...],
    version: int,
    reasons: tuple[str, ...],
) -> Decision:
    return Decision(
        allow=False,
        action=action,
        ref=ref,
        caller_tenant=caller.tenant,
        policies=policies,
        policy_version=version,
        reasons=reasons,
    )
