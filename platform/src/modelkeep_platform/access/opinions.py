"""Policies that are asked once for all questions which they cannot tell apart.

What a policy set can see of a question (`access.sight`) is all that its opinion depends on. So the rest is left out of
the question before it is asked, and the opinion is kept by what remains: it cannot depend on what it was not told.
An opinion depends on no epoch, only on the text. That policies failed is not kept: it repeats as much of the text as
the engine likes, and is asked again.
"""

import dataclasses
import sys
from functools import lru_cache, partial
from typing import NamedTuple

import cedarpy

from modelkeep_platform.access.engine import Context, Opinion, Question, ask
from modelkeep_platform.access.sight import Sights
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef

_HIDDEN = "*"


class _Seen(NamedTuple):
    """A question without what is not seen of it; the tenants first."""

    tenant: str
    owner: TenantId
    principal_type: str
    principal: str
    roles: tuple[str, ...]
    principal_name: str
    action: str
    kind: Kind
    object_id: ObjectId
    context: Context
    granted: frozenset[TenantId]


class Opinions:
    """A policy set and what it said.

    Args:
        policies: whom to ask.
        kept: how many opinions to keep, those asked for last.
    """

    def __init__(self, policies: cedarpy.PolicySet, *, kept: int) -> None:
        self._sights = Sights(policies)
        self._kept = lru_cache(maxsize=kept)(partial(_ask, policies))

    def about(self, asked: Question) -> Opinion:
        """Return what they say to every question that looks like this one to them."""
        sight, ref, context = self._sights.of(asked.action), asked.ref, asked.context
        seen = _Seen(
            asked.tenant,
            ref.owner,
            asked.principal_type,
            asked.principal if sight.principal else _HIDDEN,
            asked.roles,
            asked.name if sight.principal_name else "",
            asked.action,
            ref.kind,
            ref.object_id if sight.object else ObjectId(_HIDDEN),
            Context(
                context.name if sight.name else "",
                context.alias if sight.alias else "",
                context.version if sight.version else 0,
            ),
            asked.granted,
        )
        try:
            return self._kept(seen)
        except _FailedError as exc:
            return exc.opinion


class _FailedError(Exception):
    """They failed; an exception, since those are not kept."""

    def __init__(self, opinion: Opinion) -> None:
        super().__init__()
        self.opinion = opinion


def _ask(policies: cedarpy.PolicySet, seen: _Seen) -> Opinion:
    # INVARIANT: nothing but what is seen goes into the question, so the opinion holds for all that share it.
    opinion = ask(
        Question(
            principal_type=seen.principal_type,
            principal=seen.principal,
            tenant=seen.tenant,
            roles=seen.roles,
            name=seen.principal_name,
            action=seen.action,
            ref=ResourceRef(owner=seen.owner, kind=seen.kind, object_id=seen.object_id),
            context=seen.context,
            granted=seen.granted,
        ),
        policies,
    )
    if opinion.error is not None:
        raise _FailedError(opinion)
    # Ids once, however many opinions name them.
    return dataclasses.replace(opinion, policies=tuple(map(sys.intern, opinion.policies)))
