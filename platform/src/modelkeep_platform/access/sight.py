"""What policies can see of a question: the facts that their opinion may depend on.

Type, tenant and roles of the principal, the action, owner and kind of the object, and grants always count as seen. The
rest is seen when the text reads it, in a policy whose scope takes the action. Cedar is asked without an outside world
(no clock, no other entities, no hierarchy), so an opinion is a function of the text and of what the text reads.

Read from Cedar's own syntax tree, never from the text. What is not known for certain is seen.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

import cedarpy
from cedarpy import pst

_ACTION: Final = pst.EntityType(basename="Action", namespace=("Modelkeep",))
Actions: TypeAlias = frozenset[str] | None
"""The actions that a policy's scope takes; None for all of them."""


class Sight(NamedTuple):
    """Which facts are seen.

    Args:
        principal: the id of who asks.
        principal_name: its name.
        object: the id of the object.
        name: `context.name`.
        alias: `context.alias`.
        version: `context.version`.
    """

    principal: bool = False
    principal_name: bool = False
    object: bool = False
    name: bool = False
    alias: bool = False
    version: bool = False

    def __or__(self, other: "Sight") -> "Sight":
        return Sight(*(left or right for left, right in zip(self, other, strict=True)))


NOTHING: Final = Sight()
EVERYTHING: Final = Sight(*(True for _ in NOTHING))

_READ_OF_CONTEXT: Final = {
    "name": Sight(name=True),
    "alias": Sight(alias=True),
    "version": Sight(version=True),
    "cross_tenant": NOTHING,
}
_READ: Final = {
    "principal": {"tenant": NOTHING, "roles": NOTHING, "name": Sight(principal_name=True)},
    "resource": {"tenant": NOTHING, "granted": NOTHING},
    "context": _READ_OF_CONTEXT,
}
_WHOLE: Final = {
    "principal": Sight(principal=True, principal_name=True),
    "action": NOTHING,
    "resource": Sight(object=True),
    "context": Sight(name=True, alias=True, version=True),
}


class Sights:
    """What a set of policies sees, for each action.

    Args:
        policies: the set.
    """

    def __init__(self, policies: cedarpy.PolicySet) -> None:
        self._read = _policies_read(policies)
        self._known: dict[str, Sight] = {}

    def of(self, action: str) -> Sight:
        """Return what they may look at when this action is decided."""
        known = self._known.get(action)
        if known is None:
            known = _together(seen for actions, seen in self._read if actions is None or action in actions)
            self._known[action] = known
        return known


def _policies_read(policies: cedarpy.PolicySet) -> list[tuple[Actions, Sight]]:
    try:
        tree = policies.to_pst()
    except ValueError:  # it nests too much, or has what the tree does not know yet
        return [(None, EVERYTHING)]
    if tree.templates or tree.template_links:
        return [(None, EVERYTHING)]
    return [(_actions(policy.action), _policy_reads(policy)) for policy in tree.static_policies.values()]


def _actions(scope: pst.ActionConstraint) -> Actions:
    match scope:
        case pst.ActionEq(entity=entity):
            return frozenset({entity.id})
        case pst.ActionIn(entities=entities):
            # Actions have no groups here: each is in itself alone.
            return frozenset(entity.id for entity in entities)
        case _:
            return None


def _policy_reads(policy: pst.Template) -> Sight:
    return _together(
        [
            _scope_reads(policy.principal, Sight(principal=True)),
            _scope_reads(policy.resource, Sight(object=True)),
            *(seen for clause in policy.clauses for seen in _reads(clause.expr)),
        ]
    )


def _scope_reads(scope: object, one: Sight) -> Sight:
    match scope:
        case pst.ScopeAny() | pst.ScopeIs():
            return NOTHING
        case pst.ScopeEq() | pst.ScopeIn() | pst.ScopeIsIn():
            return one
        case _:
            return EVERYTHING


def _reads(whole: pst.Expr) -> Iterator[Sight]:
    left: list[object] = [whole]
    while left:
        node = left.pop()
        match node:
            case pst.GetAttr(base=pst.Var(name=var), attr=attr) if var in _READ:
                yield _READ[var].get(attr, EVERYTHING)
            case pst.HasAttr(base=pst.Var(), attrs=(_,)) | pst.Is(base=pst.Var(), in_expr=None):
                pass  # whether an attribute is there depends on the type alone, and types are never hidden
            case pst.Var(name=var):
                yield _WHOLE.get(var, EVERYTHING)
            case pst.EntityLit(value=entity):
                # Its attributes can be read, and are there when it is the principal or the object.
                yield NOTHING if entity.type == _ACTION else EVERYTHING
            case _:
                parts = _parts(node)
                if parts is None:
                    yield EVERYTHING
                else:
                    left.extend(parts)


def _parts(node: object) -> Iterable[object] | None:
    match node:
        case pst.BoolLit() | pst.LongLit() | pst.StringLit():
            return ()
        case pst.UnaryOp(arg=arg):
            return (arg,)
        case pst.BinaryOp(left=left, right=right):
            return (left, right)
        case pst.GetAttr(base=base) | pst.HasAttr(base=base) | pst.Like(base=base) | pst.Is(base=base, in_expr=None):
            return (base,)
        case pst.Is(base=base, in_expr=within):
            return (base, within)
        case pst.IfThenElse(cond=cond, then_expr=then, else_expr=other):
            return (cond, then, other)
        case pst.Set(elements=elements):
            return elements
        case pst.Record(fields=fields):
            return fields.values()
        case _:
            return None


def _together(sights: Iterable[Sight]) -> Sight:
    found = NOTHING
    for seen in sights:
        found |= seen
    return found
