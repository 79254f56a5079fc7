"""The authorizer: guard, grants, roles and tenants' own policies, in one decision with its reasons.

Within a tenant: the guard, the role policies and the tenant's own policies must together permit and none may forbid.
Across tenants two sides must both allow: the owner's (guard, grant, owner's policies) and the caller's (roles and its
own tenant's policies). Owner and grant are checked in Python before Cedar is asked. What is foreign and not
granted is refused exactly like what does not exist. A policy that fails while it is evaluated denies, and says so in
the server's log. Neither tenant learns what the other's policies are called: the caller is told no more of a refusal by
the owner's side than that there is one.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from modelkeep_platform.access.engine import Context, Question, Verdict, question
from modelkeep_platform.access.opinions import Opinions
from modelkeep_platform.access.refusals import RefusalLog
from modelkeep_platform.access.shipped import own_side, owner_side
from modelkeep_platform.access.store import AccessStore, ActivePolicy
from modelkeep_platform.core.actions import PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Caller, OperatorCaller
from modelkeep_platform.core.decisions import Attributes, Decision, Side
from modelkeep_platform.core.epoch_cache import EpochCache
from modelkeep_platform.core.errors import CallerError, ForbiddenError, NotFoundError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock, EpochSource, Recorder
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.core.refusals import Quota
from modelkeep_platform.storage.database import Database
from modelkeep_platform.telemetry.logs import fields

NOT_FOUND: Final = "there is no such object, or you may not see it"
OWNER_FORBIDS: Final = "the owner's policies forbid it"
_log = logging.getLogger(__name__)
_CACHED: Final = 8192
_NOTHING: Final[Attributes] = {}
_ASK_ADMINISTRATOR: Final = "ask the tenant's administrator"


@dataclass(frozen=True, slots=True)
class _Said:
    """What one side said; `reasons` is empty when it allows."""

    side: Side
    reasons: tuple[str, ...] = ()


class PolicyAuthorizer:
    """Implements the `Authorizer` port.

    Args:
        database: where refusals are recorded.
        store: reads policies and grants.
        recorder: writes refusals.
        epoch: what cached decisions live by.
        clock: ends grants.
        refusals_per_minute: says how many refusals of a tenant, and of one principal, are entries of their own each
            minute.
    """

    def __init__(
        self,
        *,
        database: Database,
        store: AccessStore,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        refusals_per_minute: Callable[[TenantId], Quota],
    ) -> None:
        self._store = store
        self._refusals = RefusalLog(database=database, recorder=recorder, clock=clock, per_window=refusals_per_minute)
        self._epoch = epoch
        self._clock = clock
        self._own_side = own_side()
        self._owner_side = owner_side()
        self._decisions: EpochCache[tuple[object, ...], Decision] = EpochCache(_CACHED)

    def require(
        self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None
    ) -> Decision:
        """Return an allow decision or raise; a refusal is recorded before it is raised.

        Raises:
            NotFoundError: missing, or foreign and not granted.
            ForbiddenError: denied; `details` holds reasons, and policies of the caller's tenant only.
        """
        facts = attributes or _NOTHING
        key, epoch = _key(caller, action, ref, facts), self._epoch.current()
        known = self._known(key, epoch)
        if known is not None:
            return known
        decision, refusal = self._decide(caller, action, ref, facts, epoch)
        if refusal is not None:
            self._refusals.record(caller, decision)
            raise refusal
        self._decisions.put(key, decision, epoch=epoch)
        return decision

    def allows(self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None) -> bool:
        """Return whether `require` would pass; records nothing."""
        facts, epoch = attributes or _NOTHING, self._epoch.current()
        known = self._known(_key(caller, action, ref, facts), epoch)
        return known is not None or self._decide(caller, action, ref, facts, epoch)[1] is None

    def record_counts(self) -> None:
        """Record how many refusals of minutes that are over were not recorded singly; raises StorageError."""
        self._refusals.flush(unfinished=False)

    def close(self) -> None:
        """Record every count of refusals that were not recorded singly; raises StorageError."""
        self._refusals.flush()

    def cached(self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes) -> Decision | None:
        """Return an allow decision made before in this epoch, from memory alone."""
        return self._known(_key(caller, action, ref, attributes), self._epoch.current())

    def _known(self, key: tuple[object, ...], epoch: int) -> Decision | None:
        found = self._decisions.get(key, epoch=epoch)
        return None if found is None or found.ended(self._clock) else found

    def _decide(
        self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes, epoch: int
    ) -> tuple[Decision, CallerError | None]:
        if isinstance(caller, OperatorCaller) and (action not in PLATFORM_ACTIONS or ref.owner != caller.tenant):
            reason = "operators run the platform; they have no access to what belongs to tenants"
            return _refused(caller, action, ref, (reason,), code="operator_forbidden")
        asked = partial(question, caller, action, ref, attributes)
        if ref.owner != caller.tenant:
            return self._decide_foreign(caller, action, ref, asked, epoch)
        if ref.is_missing:
            return _missing(caller, action, ref)
        said = self._own_side_says(caller, asked(granted=frozenset()), epoch)
        if said.reasons:
            return _refused(caller, action, ref, said.reasons, side=said.side)
        return _allowed(caller, action, ref, said.side), None

    def _decide_foreign(
        self, caller: Caller, action: Action, ref: ResourceRef, ask_with: Callable[..., Question], epoch: int
    ) -> tuple[Decision, CallerError | None]:
        # What is missing is looked up like what is there: both take the same path and the same time.
        grants = self._store.grants_of(ref, caller.tenant, now_s=self._clock.now_s(), epoch=epoch)
        if ref.is_missing or not grants:
            return _missing(caller, action, ref)
        fitting = [grant for grant in grants if action in grant.actions]
        if not fitting:
            return _refused(caller, action, ref, (f"`{action}` is not granted on this object",))
        grant = max(fitting, key=lambda one: float("inf") if one.expires_at is None else one.expires_at)
        asked = ask_with(granted=frozenset({caller.tenant}))
        owner = self._says(self._owner_side, self._store.active_policy(ref.owner, epoch=epoch), ref.owner, asked)
        own = self._own_side_says(caller, asked, epoch)
        # The caller's side first: what its own tenant forbids tells nothing of the owner's policies.
        if own.reasons:
            return _refused(caller, action, ref, own.reasons, side=own.side)
        if owner.reasons:
            # INVARIANT: ids, versions and failures of the owner's policies are the owner's.
            return _refused(caller, action, ref, (OWNER_FORBIDS,), side=owner.side, advice="ask the owner")
        decision = _allowed(caller, action, ref, own.side, owner.side)
        return replace(decision, grant_id=grant.id, expires_at=grant.expires_at), None

    def _own_side_says(self, caller: Caller, asked: Question, epoch: int) -> _Said:
        active = None if isinstance(caller, OperatorCaller) else self._store.active_policy(caller.tenant, epoch=epoch)
        return self._says(self._own_side, active, caller.tenant, asked)

    def _says(self, shipped: Opinions, active: ActivePolicy | None, tenant: TenantId, asked: Question) -> _Said:
        opinions = [shipped.about(asked)]
        if active is not None:
            opinions.append(active.opinion(asked))
        version = 0 if active is None else active.version
        for opinion in opinions:
            if opinion.error is not None:
                # Not the engine's words: they repeat the policy's text, which is its tenant's.
                about = fields(tenant=tenant, action=asked.action, reason=f"policy version {version}")
                _log.error("a policy failed while it was evaluated", extra=about)

        said = {opinion.verdict for opinion in opinions}
        verdict = next((one for one in (Verdict.FORBID, Verdict.PERMIT) if one in said), Verdict.SILENT)
        policies = tuple(policy for opinion in opinions if opinion.verdict is verdict for policy in opinion.policies)
        side = Side(tenant=tenant, policies=policies, policy_version=version)
        return _Said(side, _reasons(verdict, policies, asked))


def _reasons(verdict: Verdict, policies: tuple[str, ...], asked: Question) -> tuple[str, ...]:
    if verdict is Verdict.PERMIT:
        return ()
    if verdict is Verdict.SILENT:
        return (f"no policy permits `{asked.action}` to the roles `{', '.join(asked.roles)}`",)
    return tuple(f"policy `{policy}` forbids it" for policy in policies) or ("a policy failed while it was evaluated",)


def _key(caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes) -> tuple[object, ...]:
    # INVARIANT: all that a question to Cedar holds is part of the key, tenants first.
    kind, roles = ("operator", None) if isinstance(caller, OperatorCaller) else (caller.principal_kind, caller.roles)
    return (
        caller.tenant,
        kind,
        caller.principal,
        caller.name,
        roles,
        action,
        ref.owner,
        ref.kind,
        ref.object_id,
        Context.of(attributes),
    )


def _allowed(caller: Caller, action: Action, ref: ResourceRef, *sides: Side) -> Decision:
    return Decision(allow=True, action=action, ref=ref, caller_tenant=caller.tenant, sides=sides)


def _missing(caller: Caller, action: Action, ref: ResourceRef) -> tuple[Decision, CallerError]:
    return _denied(caller, action, ref, ("not found",), None), NotFoundError(NOT_FOUND)


def _refused(
    caller: Caller,
    action: Action,
    ref: ResourceRef,
    reasons: tuple[str, ...],
    *,
    side: Side | None = None,
    code: str = "forbidden",
    advice: str = _ASK_ADMINISTRATOR,
) -> tuple[Decision, CallerError]:
    decision = _denied(caller, action, ref, reasons, side)
    own = decision.side(caller.tenant)
    error = ForbiddenError(
        f"`{action}` is denied: {reasons[0]}; {advice}",
        code=code,
        details={
            "action": str(action),
            "reasons": list(reasons),
            "policies": [] if own is None else list(own.policies),
        },
    )
    return decision, error


def _denied(caller: Caller, action: Action, ref: ResourceRef, reasons: tuple[str, ...], side: Side | None) -> Decision:
    sides = () if side is None else (side,)
    return Decision(allow=False, action=action, ref=ref, caller_tenant=caller.tenant, sides=sides, reasons=reasons)
