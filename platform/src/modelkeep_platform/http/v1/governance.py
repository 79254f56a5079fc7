"""Grants, policies and the audit log."""

from starlette.responses import PlainTextResponse

from modelkeep_platform.access.grants import GrantService
from modelkeep_platform.access.policies import PolicyService
from modelkeep_platform.audit.service import AuditService
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.limits import MAX_POLICY_BYTES
from modelkeep_platform.http.routing import Call, Endpoint, decimal
from modelkeep_platform.http.v1.converting import show, show_page
from modelkeep_platform.http.wire import governance as wire
from modelkeep_platform.http.wire.fields import ListOf


def endpoints(*, grants: GrantService, policies: PolicyService, audit: AuditService) -> list[Endpoint]:
    """Return the endpoints of grants, policies and the log."""
    return [*_grant_endpoints(grants), *_policy_endpoints(policies), *_audit_endpoints(audit)]


def _grant_endpoints(grants: GrantService) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/grants",
            guard=Action.GRANT_CREATE,
            handler=lambda call: show(
                grants.create(
                    call.tenant_caller,
                    kind=call.body.kind,
                    name=call.body.name,
                    grantee=call.body.grantee,
                    actions=call.body.actions,
                    expires_at=call.body.expires_at,
                ),
                wire.Grant,
            ),
            summary="Give another tenant actions on one object",
            body=wire.NewGrant,
            returns=wire.Grant,
            status=201,
        ),
        Endpoint(
            method="GET",
            path="/v1/grants",
            guard=Action.GRANT_LIST,
            handler=lambda call: show_page(grants.list(call.tenant_caller, call.page), wire.Grant),
            summary="List grants given",
            returns=ListOf[wire.Grant],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="DELETE",
            path="/v1/grants/{id}",
            guard=Action.GRANT_REVOKE,
            handler=lambda call: grants.revoke(call.tenant_caller, call.path["id"]),
            summary="Revoke a grant; the next call is refused",
            status=204,
        ),
    ]


def _policy_endpoints(policies: PolicyService) -> list[Endpoint]:
    def version(call: Call) -> int:
        return decimal(call.path["version"], "version")

    return [
        Endpoint(
            method="GET",
            path="/v1/policies",
            guard=Action.POLICY_LIST,
            handler=lambda call: show_page(policies.list(call.tenant_caller, call.page), wire.PolicyVersion),
            summary="List policy versions, newest first",
            returns=ListOf[wire.PolicyVersion],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="POST",
            path="/v1/policies",
            guard=Action.POLICY_PUBLISH,
            handler=lambda call: show(policies.publish(call.tenant_caller, call.body.text), wire.PolicyVersion),
            summary="Publish a policy; it decides the next call",
            body=wire.PolicyText,
            returns=wire.PolicyVersion,
            status=201,
            limit_bytes=2 * MAX_POLICY_BYTES,
        ),
        Endpoint(
            method="POST",
            path="/v1/policies/check",
            guard=Action.POLICY_READ,
            handler=lambda call: show(policies.check(call.tenant_caller, call.body.text), wire.PolicyChecked),
            summary="Check a policy without publishing it",
            body=wire.PolicyText,
            returns=wire.PolicyChecked,
            limit_bytes=2 * MAX_POLICY_BYTES,
        ),
        Endpoint(
            method="GET",
            path="/v1/policies/{version}",
            guard=Action.POLICY_READ,
            handler=lambda call: show(policies.get(call.tenant_caller, version(call)), wire.PolicyVersionText),
            summary="Show a policy version with its text",
            returns=wire.PolicyVersionText,
        ),
        Endpoint(
            method="POST",
            path="/v1/policies/{version}/activate",
            guard=Action.POLICY_ACTIVATE,
            handler=lambda call: show(policies.activate(call.tenant_caller, version(call)), wire.PolicyVersion),
            summary="Roll back, or forward, to a version",
            returns=wire.PolicyVersion,
        ),
    ]


def _audit_endpoints(audit: AuditService) -> list[Endpoint]:
    def consistency(call: Call) -> wire.ConsistencyProof:
        old = call.integer("old")
        if old is None:
            raise MalformedError("`old`, the size of an earlier checkpoint, is missing", code="invalid_parameter")
        return show(audit.consistency(call.any_caller, old, call.integer("new")), wire.ConsistencyProof)

    return [
        Endpoint(
            method="GET",
            path="/v1/audit/entries",
            guard=Action.AUDIT_READ,
            handler=lambda call: show_page(
                audit.entries(call.any_caller, call.page, request_id=call.query.get("request_id")), wire.AuditEntry
            ),
            summary="Read the own tenant's entries, newest first",
            returns=ListOf[wire.AuditEntry],
            query=("limit", "cursor", "request_id"),
        ),
        Endpoint(
            method="GET",
            path="/v1/audit/checkpoint",
            guard=Action.AUDIT_READ,
            handler=lambda call: PlainTextResponse(audit.checkpoint(call.any_caller)),
            summary="Read the newest signed checkpoint",
            refuses=(422,),
            media_type="text/plain",
        ),
        Endpoint(
            method="GET",
            path="/v1/audit/key",
            guard=Action.AUDIT_READ,
            handler=lambda call: show(audit.key(call.any_caller), wire.LogKey),
            summary="Read the key that checkpoints verify under",
            returns=wire.LogKey,
        ),
        Endpoint(
            method="GET",
            path="/v1/audit/entries/{index}/proof",
            guard=Action.AUDIT_READ,
            handler=lambda call: show(
                audit.inclusion(call.any_caller, decimal(call.path["index"], "index"), call.integer("size")),
                wire.InclusionProof,
            ),
            summary="Prove that an own entry is in the log",
            returns=wire.InclusionProof,
            query=("size",),
        ),
        Endpoint(
            method="GET",
            path="/v1/audit/consistency",
            guard=Action.AUDIT_READ,
            handler=consistency,
            summary="Prove that the log only grew",
            returns=wire.ConsistencyProof,
            query=("old", "new"),
            refuses=(422,),
        ),
    ]
