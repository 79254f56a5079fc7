"""One of every kind of object that Acme owns, and ids of the same form that were never given out."""

import hashlib
from dataclasses import dataclass

from modelkeep_platform.core.refs import Kind
from services.house import GRAPH, WEIGHTS, House, job

NEVER = "aaaaaaaaaaaaaaaaaaaaaaaaaa"

KINDS: dict[Kind, str] = {
    Kind.MEMBER: "member",
    Kind.SERVICE_ACCOUNT: "service_account",
    Kind.UPLOAD: "upload",
    Kind.MODEL: "model",
    Kind.DATASET: "dataset",
    Kind.JOB: "job",
    Kind.GRANT: "grant",
    Kind.AUDIT_LOG: "log_index",
}
"""Under which name the thing of each kind is in `Things`."""

NO_THINGS: dict[Kind, str] = {
    Kind.PLATFORM: "it is the operator's: test_no_tenant_does_the_operators_work",
    Kind.TENANT: "its name is asked for in grants alone, and is no secret: test_a_grant_tells_that_a_tenant_is_there",
    Kind.POLICY: "versions of a policy are numbers within the caller's own tenant",
}
"""Kinds of which no tenant can name another's, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Ids by kind; `missing` are those of things that never existed."""

    own: dict[str, str]
    foreign: dict[str, str]
    missing: dict[str, str]

    @property
    def never(self) -> dict[str, str]:
        """Return names without an owner, as callers name their own things, of which there are none."""
        return {**self.missing, "model": "never", "dataset": "never"}

    @classmethod
    def make(cls, house: House) -> "Things":
        """Make one of every kind in Acme, and enough for two pages of every list."""
        acme = house.acme
        app = acme.clients["developer"]
        grant = acme.admin.grants.create("model", "model", grantee="globex", actions=["model:read"])
        acme.admin.grants.revoke(grant.id)
        kept, _ = (
            acme.admin.grants.create("dataset", "open", grantee="globex", actions=[action])
            for action in ("dataset:read", "dataset:train")
        )
        member = acme.admin.members.invite("ana", roles=["analyst"]).member
        account = acme.admin.service_accounts.create("spare", roles=["analyst"]).service_account
        # Queued for good: what moves by itself would change rows while a call is watched.
        for slug in ("acme", "globex"):
            house.operator.tenants.set_limits(slug, {"running_jobs": 0})
        queued = app.jobs.create(job(into="by-job"))
        app.jobs.cancel(app.jobs.create(job(dataset="open", privacy=None, into="given-up")).id)
        acme.admin.policies.publish("")
        app.models.upload("other", graph=GRAPH, weights=WEIGHTS)
        acme.admin.models.set_alias("model", "production", version=1)
        with house.http(app) as http:
            body = {
                "graph": GRAPH,
                "weights_bytes": len(WEIGHTS),
                "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            }
            upload = http.post("/v1/models/half/versions", json=body).json()["upload"]["id"]
        acme.admin.audit.verify()
        # Not what the operator did to the tenant: that is in the platform's log, too.
        entries = [one for one in acme.admin.audit.entries(limit=200) if not one.action.startswith("tenant:")]
        entry = next(entry for entry in entries if entry.index is not None)
        ids = {
            "member": member.id,
            "service_account": account.id,
            "job": queued.id,
            "upload": upload,
            "grant": kept.id,
            "log_index": str(entry.index),
            "request": entry.request_id or "",
        }
        own = {**ids, "model": "model", "dataset": "rows", "version": "1"}
        missing = {
            **{kind: f"{value.partition('_')[0]}_{NEVER}" for kind, value in ids.items()},
            "model": "acme~never",
            "dataset": "acme~never",
            "log_index": "999999999",
            "version": "1",
        }
        return cls(own=own, foreign={**own, "model": "acme~model", "dataset": "acme~rows"}, missing=missing)
