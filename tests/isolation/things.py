"""One of every kind of object that Acme owns, and ids of the same form that were never given out."""

import hashlib
from dataclasses import dataclass

from services.house import GRAPH, WEIGHTS, House, job

NEVER = "aaaaaaaaaaaaaaaaaaaaaaaaaa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Ids by kind; `missing` are the ids of things that never existed."""

    own: dict[str, str]
    foreign: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def make(cls, house: House) -> "Things":
        """Make one of every kind in Acme."""
        acme = house.acme
        app = acme.clients["developer"]
        grant = acme.admin.grants.create("model", "model", grantee="globex", actions=["model:read"])
        acme.admin.grants.revoke(grant.id)
        kept = acme.admin.grants.create("dataset", "open", grantee="globex", actions=["dataset:read"])
        member = acme.admin.members.invite("ana", roles=["analyst"]).member
        account = acme.admin.service_accounts.create("spare", roles=["analyst"]).service_account
        started = app.jobs.create(job(dataset="open", privacy=None, into="by-job"))
        app.jobs.wait(started.id)
        with house.http(app) as http:
            body = {
                "graph": GRAPH,
                "weights_bytes": len(WEIGHTS),
                "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            }
            upload = http.post("/v1/models/half/versions", json=body).json()["upload"]["id"]
        acme.admin.audit.verify()
        entry = next(entry for entry in acme.admin.audit.entries(limit=200) if entry.index is not None)
        ids = {
            "member": member.id,
            "service_account": account.id,
            "job": started.id,
            "upload": upload,
            "grant": kept.id,
            "log_index": str(entry.index),
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
