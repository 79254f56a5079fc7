"""Policies that are asked once for all questions which they cannot tell apart.

What a policy set can see of a question (`access.sight`) is all that its opinion depends on. So the rest is left out of
the question before it is asked, and the opinion is kept by what remains: it cannot depend on what it was not told.
An opinion depends on no epoch, only on the text. That policies failed is not kept: it repeats as much of the text as
the engine likes, and is asked again.
"""

import dataclasses
import sys
from functools import lru_cache, partial

import cedarpy

from modelkeep_platform.access.engine import Context, Opinion, Question, ask
from modelkeep_platform.access.sight import Sights
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import ResourceRef

_HIDDEN = "*"


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
        seen = asked._replace(
            principal=asked.principal if sight.principal else _HIDDEN,
            name=asked.name if sight.principal_name else "",
            ref=ref if sight.object else ResourceRef(owner=ref.owner, kind=ref.kind, object_id=ObjectId(_HIDDEN)),
            context=Context(
                context.name if sight.name else "",
                context.alias if sight.alias else "",
                context.version if sight.version else 0,
            ),
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


def _ask(policies: cedarpy.PolicySet, seen: Question) -> Opinion:
    # INVARIANT: nothing but what is seen goes into the question, so the opinion holds for all that share it.
    opinion = ask(seen, policies)
    if opinion.error is not None:
        raise _FailedError(opinion)
    # Ids once, however many opinions name them.
    return dataclasses.replace(opinion, policies=tuple(map(sys.intern, opinion.policies)))
