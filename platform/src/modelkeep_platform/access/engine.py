"""One question to Cedar: a request and a policy set in, permit, forbid or silence out.

Pure apart from the engine itself. An error in any policy is not silence: Cedar skips a policy that errors,
which would turn a forbid into nothing, so an error forbids.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import cedarpy

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


class Verdict(Enum):
    """What one policy set says."""

    PERMIT = "permit"
    FORBID = "forbid"
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """A verdict and the ids of the policies that determined it."""

    verdict: Verdict
    policies: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request in Cedar's terms; built once, put to several policy sets."""

    request: dict[str, object]
    entities: str


def question(
    caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes, *, granted: frozenset[TenantId]
) -> Question:
    """Put a call into Cedar's terms.

    Args:
        caller: who asks.
        action: to do what.
        ref: to what.
        attributes: facts about the call; `name`, `alias` and `version` reach the context, nothing else does.
        granted: tenants to which the owner grants this very action on this object.
    """
    principal = {"type": f"Modelkeep::{_principal_type(caller)}", "id": str(caller.principal)}
    resource = {"type": f"Modelkeep::{_TYPES[ref.kind]}", "id": str(ref.object_id)}
    roles = [] if isinstance(caller, OperatorCaller) else sorted(caller.roles)
    entities = [
        {"uid": principal, "attrs": {"tenant": caller.tenant, "roles": roles, "name": caller.name}, "parents": []},
        {"uid": resource, "attrs": {"tenant": ref.owner, "granted": sorted(granted)}, "parents": []},
    ]
    context = {
        "name": str(attributes.get("name", "")),
        "alias": str(attributes.get("alias", "")),
        "version": _number(attributes.get("version", 0)),
        "cross_tenant": caller.tenant != ref.owner,
    }
    return Question(
        request={
            "principal": principal,
            "action": {"type": "Modelkeep::Action", "id": str(action)},
            "resource": resource,
            "context": context,
        },
        entities=json.dumps(entities),
    )


def ask(asked: Question, policies: cedarpy.PolicySet) -> Opinion:
    """Return what `policies` say to `asked`; whatever goes wrong while they are asked forbids."""
    try:
        result = cedarpy.is_authorized(asked.request, policies, asked.entities)
    except (ValueError, TypeError) as exc:
        return failed(str(exc))
    diagnostics = result.diagnostics
    # INVARIANT: an erroring policy was skipped; its opinion is unknown, so the answer is no.
    if diagnostics.errors or result.decision is cedarpy.Decision.NoDecision:
        return failed(str(diagnostics.errors[0]) if diagnostics.errors else "no decision")
    ids = tuple(sorted(diagnostics.id_annotations_by_reason.get(reason, reason) for reason in diagnostics.reasons))
    if result.allowed:
        return Opinion(verdict=Verdict.PERMIT, policies=ids)
    return Opinion(verdict=Verdict.FORBID if ids else Verdict.SILENT, policies=ids)


def failed(error: str) -> Opinion:
    """Return the opinion of a policy set that could not be asked: it forbids, and says why."""
    return Opinion(verdict=Verdict.FORBID, policies=(), error=error)


def _principal_type(caller: Caller) -> str:
    if isinstance(caller, OperatorCaller):
        return "Operator"
    return "User" if caller.principal_kind is PrincipalKind.USER else "ServiceAccount"


def _number(version: object) -> int:
    text = str(version)
    return int(text) if text.isascii() and text.isdigit() else 0
