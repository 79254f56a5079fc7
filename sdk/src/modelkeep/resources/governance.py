"""Budgets, grants and policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from modelkeep._core.flows import Flow, Mode, Operation
from modelkeep._core.session import check_same
from modelkeep.resources.base import Resource
from modelkeep.types import Budget, Grant, PolicyChecked, PolicyVersion


class Budgets(Resource[Mode]):
    """Privacy budgets of private datasets."""

    @Operation
    def get(self, dataset: str) -> Flow[Budget]:
        """Show a dataset's budget: the limits, what was charged, what is held back."""
        budget = yield from self._session.get(Budget, "v1", "budgets", dataset)
        check_same(dataset.rpartition("~")[2], budget.dataset.rpartition("~")[2], "dataset")
        return budget

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Budget]]:
        """List budgets, at most `limit`."""
        return (yield from self._session.list(Budget, "v1", "budgets", limit=limit))


class Grants(Resource[Mode]):
    """What other tenants may do with objects of this one."""

    @Operation
    def create(
        self,
        kind: Literal["model", "dataset"],
        name: str,
        *,
        grantee: str,
        actions: Sequence[str],
        expires_at: int | None = None,
    ) -> Flow[Grant]:
        """Give another tenant actions on one object.

        Args:
            kind: of the object.
            name: of the object, in the own tenant.
            grantee: the other tenant's slug.
            actions: such as ``model:predict``.
            expires_at: when it ends, in seconds since the epoch; None for never.
        """
        body = {"kind": kind, "name": name, "grantee": grantee, "actions": [*actions], "expires_at": expires_at}
        grant = yield from self._session.post(Grant, "v1", "grants", body=body)
        check_same(kind, grant.kind, "kind of object")
        check_same(name.rpartition("~")[2], grant.name.rpartition("~")[2], kind)
        check_same(grantee, grant.grantee, "grantee")
        return grant

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Grant]]:
        """List grants given, at most `limit`."""
        return (yield from self._session.list(Grant, "v1", "grants", limit=limit))

    @Operation
    def revoke(self, grant_id: str) -> Flow[None]:
        """Revoke a grant; the grantee's next call is refused."""
        yield from self._session.delete("v1", "grants", grant_id)


class Policies(Resource[Mode]):
    """The tenant's own policies, in Cedar; immutable versions of which one is active."""

    @Operation
    def publish(self, text: str) -> Flow[PolicyVersion]:
        """Publish a policy; it decides the next call.

        Raises:
            InvalidRequestError: the text is refused; `details["errors"]` has message, line and column.
        """
        return (yield from self._session.post(PolicyVersion, "v1", "policies", body={"text": text}))

    @Operation
    def check(self, text: str) -> Flow[PolicyChecked]:
        """Check a policy without publishing it.

        Raises:
            InvalidRequestError: the text would be refused; `details["errors"]` has message, line and column.
        """
        return (yield from self._session.post(PolicyChecked, "v1", "policies", "check", body={"text": text}))

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[PolicyVersion]]:
        """List versions, newest first, at most `limit`."""
        return (yield from self._session.list(PolicyVersion, "v1", "policies", limit=limit))

    @Operation
    def get(self, version: int) -> Flow[PolicyVersion]:
        """Show a version with its text."""
        policy = yield from self._session.get(PolicyVersion, "v1", "policies", version)
        check_same(version, policy.version, "policy version")
        return policy

    @Operation
    def activate(self, version: int) -> Flow[PolicyVersion]:
        """Roll back, or forward, to a version."""
        policy = yield from self._session.post(PolicyVersion, "v1", "policies", version, "activate")
        check_same(version, policy.version, "policy version")
        return policy
