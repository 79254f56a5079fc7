"""One question to Cedar: a request and a policy set in, permit, forbid or silence out.

Pure apart from the engine itself. An error in any policy is not silence: Cedar skips a policy that errors,
which would turn a forbid into nothing, so an error forbids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

import cedarpy
import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, OperatorCaller, PrincipalKind
from modelkeep_platform.core.decisions import Attributes
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef

_TYPES: Final[Mapping[Kind, str]] = {
    Kind.PLATFORM: "Platform",
    Kind.TENANT: "Tenant",
    Kind.MEMBER: "Member",
    Kind.SERVICE_ACCOUNT: "Account",
    Kind.UPLOAD: "Upload",
    Kind.MODEL: "Model",
    Kind.DATASET: "Dataset",
    Kind.JOB: "Job",
    Kind.GRANT: "Grant",
    Kind.POLICY: "Policy",
    Kind.AUDIT_LOG: "AuditLog",
}
_ENTITIES: Final = 1024
_MAX_DIGITS: Final = 18  # of a Cedar long


class Verdict(Enum):
    """What one policy set says."""

    PERMIT = "permit"
    FORBID = "forbid"
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """A verdict and the ids of the policies that determined it; `error` is for the log, never for callers."""

    verdict: Verdict
    policies: tuple[str, ...]
    error: str | None = None


SILENCE: Final = Opinion(verdict=Verdict.SILENT, policies=())


class Context(NamedTuple):
    """What policies may test about a call, apart from who and what."""

    name: str
    alias: str
    version: int

    @classmethod
    def of(cls, attributes: Attributes) -> "Context":
        """Take `name`, `alias` and `version` from a call's attributes; nothing else reaches policies."""
        if not attributes:
            return _NOTHING_KNOWN
        return cls(
            str(attributes.get("name", "")), str(attributes.get("alias", "")), _number(attributes.get("version", 0))
        )


_NOTHING_KNOWN: Final = Context("", "", 0)


class Question(NamedTuple):
    """A request, put into Cedar's terms when it is asked; also what an opinion is kept by, the tenant first.

    Args:
        tenant: of who asks.
        principal_type: ``User``, ``ServiceAccount`` or ``Operator``.
        principal: who asks.
        roles: held there.
        name: the principal's name.
        action: to do what.
        ref: to what.
        context: facts about the call.
        granted: tenants to which the owner grants this very action on this object.
    """

    tenant: str
    principal_type: str
    principal: str
    roles: tuple[str, ...]
    name: str
    action: str
    ref: ResourceRef
    context: Context
    granted: frozenset[TenantId]

    @property
    def request(self) -> dict[str, object]:
        """The request; the context is JSON already."""
        name, alias, version = self.context
        cross_tenant = self.tenant != self.ref.owner
        context = {"name": name, "alias": alias, "version": version, "cross_tenant": cross_tenant}
        return {
            "principal": {"type": f"Modelkeep::{self.principal_type}", "id": self.principal},
            "action": {"type": "Modelkeep::Action", "id": self.action},
            "resource": _resource(self.ref),
            "context": _json(context),
        }

    @property
    def entities(self) -> cedarpy.Entities:
        """Principal and resource with their attributes, parsed.

        Raises:
            ValueError: Cedar cannot read them: a name is no Unicode text.
        """
        principal = (self.principal_type, self.principal, self.tenant, self.roles, self.name)
        return _entities(principal, self.ref, self.granted)


def question(
    caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes, *, granted: frozenset[TenantId]
) -> Question:
    """Put a call into a question.

    Args:
        caller: who asks.
        action: to do what.
        ref: to what.
        attributes: facts about the call; `name`, `alias` and `version` reach the context, nothing else does.
        granted: tenants to which the owner grants this very action on this object.
    """
    return Question(
        principal_type=_principal_type(caller),
        principal=str(caller.principal),
        tenant=str(caller.tenant),
        roles=() if isinstance(caller, OperatorCaller) else tuple(sorted(map(str, caller.roles))),
        name=caller.name,
        action=str(action),
        ref=ref,
        context=Context.of(attributes),
        granted=granted,
    )


def ask(asked: Question, policies: cedarpy.PolicySet) -> Opinion:
    """Return what `policies` say to `asked`; whatever goes wrong while they are asked forbids."""
    try:
        result = cedarpy.is_authorized(asked.request, policies, asked.entities)
    except (ValueError, TypeError) as exc:
        return failed(str(exc))
    diagnostics, decision = result.diagnostics, result.decision
    # INVARIANT: an erroring policy was skipped; its opinion is unknown, so the answer is no.
    if diagnostics.errors or decision is cedarpy.Decision.NoDecision:
        return failed(str(diagnostics.errors[0]) if diagnostics.errors else "no decision")
    if not diagnostics.reasons:
        return SILENCE
    labels = diagnostics.id_annotations_by_reason
    ids = tuple(sorted(labels.get(reason) or reason for reason in diagnostics.reasons))
    return Opinion(verdict=Verdict.PERMIT if decision is cedarpy.Decision.Allow else Verdict.FORBID, policies=ids)


def failed(error: str) -> Opinion:
    """Return the opinion of a policy set that could not be asked: it forbids, and says why."""
    return Opinion(verdict=Verdict.FORBID, policies=(), error=error)


@lru_cache(maxsize=_ENTITIES)
def _entities(
    principal: tuple[str, str, str, tuple[str, ...], str], ref: ResourceRef, granted: frozenset[TenantId]
) -> cedarpy.Entities:
    # What policies do not see of a question is left out of it (`access.opinions`), so these come back often.
    principal_type, principal_id, tenant, roles, name = principal
    who = {"type": f"Modelkeep::{principal_type}", "id": principal_id}
    about_who = {"tenant": tenant, "roles": roles, "name": name}
    about_what = {"tenant": ref.owner, "granted": sorted(granted)}
    return cedarpy.Entities.from_json_str(
        _json(
            [
                {"uid": who, "attrs": about_who, "parents": []},
                {"uid": _resource(ref), "attrs": about_what, "parents": []},
            ]
        )
    )


def _json(found: object) -> str:
    return msgspec.json.encode(found).decode()


def _resource(ref: ResourceRef) -> dict[str, str]:
    return {"type": f"Modelkeep::{_TYPES[ref.kind]}", "id": ref.object_id}


def _principal_type(caller: Caller) -> str:
    if isinstance(caller, OperatorCaller):
        return "Operator"
    return "User" if caller.principal_kind is PrincipalKind.USER else "ServiceAccount"


def _number(version: object) -> int:
    text = str(version)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0
