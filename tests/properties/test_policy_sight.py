"""An opinion that is kept is what the whole question gets, whatever policies read and whoever asked before."""

from typing import Any

import cedarpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.core import ACME, GLOBEX
from modelkeep_platform.access.engine import Context, Question, ask
from modelkeep_platform.access.opinions import Opinions
from modelkeep_platform.access.sight import EVERYTHING, NOTHING, Sight, Sights
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import Kind, ResourceRef

PREDICT, READ = "model:predict", "model:read"
VARIABLES = st.sampled_from(["principal", "resource", "context", "action"])
ATTRIBUTES = st.sampled_from(["name", "alias", "version", "tenant", "roles", "granted", "cross_tenant", "a", "none"])
ENTITIES = st.sampled_from(
    [
        'Modelkeep::User::"u1"',
        'Modelkeep::Model::"m1"',
        'Modelkeep::Action::"model:predict"',
        'Modelkeep::Account::"u1"',
    ]
)
LITERALS = st.sampled_from(["true", "false", "1", "9223372036854775807", '"u1"', '"x"', '"tnt_acme"', "[]", "{}"])
TYPES = st.sampled_from(["Modelkeep::User", "Modelkeep::Model", "Modelkeep::ServiceAccount"])
LEAVES = VARIABLES | ENTITIES | LITERALS | st.builds("{}.{}".format, VARIABLES, ATTRIBUTES)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["==", "!=", "<", "&&", "||", "+", "in"]), inner),
        st.builds("({}).{}".format, inner, ATTRIBUTES),
        st.builds('({})["{}"]'.format, inner, ATTRIBUTES),
        st.builds("({} has {})".format, inner, ATTRIBUTES),
        st.builds("({} has {}.{})".format, inner, ATTRIBUTES, ATTRIBUTES),
        st.builds('({} like "{}*")'.format, inner, st.sampled_from(["x", "u", ""])),
        st.builds("({} is {})".format, inner, TYPES),
        st.builds("({} is {} in {})".format, inner, TYPES, inner),
        st.builds("(if {} then {} else {})".format, inner, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("({}).{}({})".format, inner, st.sampled_from(["contains", "containsAny", "hasTag", "getTag"]), inner),
        st.builds("{{a: {}, name: {}}}".format, inner, inner),
        st.builds("!({})".format, inner),
        st.builds("ip({}).isIpv4()".format, inner),
    )


CONDITIONS = st.recursive(LEAVES, _grown, max_leaves=8)
WHO = st.sampled_from(
    [
        *("principal", 'principal == Modelkeep::User::"u1"', 'principal in Modelkeep::User::"u1"'),
        *("principal is Modelkeep::User", 'principal is Modelkeep::User in Modelkeep::User::"u1"'),
    ]
)
WHAT = st.sampled_from(
    [
        *("resource", 'resource == Modelkeep::Model::"m1"', 'resource in Modelkeep::Model::"m1"'),
        *("resource is Modelkeep::Model", 'resource is Modelkeep::Model in Modelkeep::Model::"m1"'),
    ]
)
HOW = st.sampled_from(
    [
        *("action", f'action == Modelkeep::Action::"{PREDICT}"', f'action in [Modelkeep::Action::"{READ}"]'),
        f'action in [Modelkeep::Action::"{READ}", Modelkeep::Action::"{PREDICT}"]',
    ]
)
POLICY = st.builds(
    "{} ({}, {}, {}) {} {{ {} }};".format,
    st.sampled_from(["permit", "forbid"]),
    WHO,
    HOW,
    WHAT,
    st.sampled_from(["when", "unless"]),
    CONDITIONS,
)
QUESTIONS = st.builds(
    Question,
    principal_type=st.sampled_from(["User", "ServiceAccount"]),
    principal=st.sampled_from(["u1", "u2", "*"]),
    tenant=st.sampled_from([ACME, GLOBEX]),
    roles=st.sampled_from([(), ("analyst",)]),
    name=st.sampled_from(["", "u1", "x"]),
    action=st.sampled_from([PREDICT, READ]),
    ref=st.builds(
        ResourceRef,
        owner=st.sampled_from([ACME, GLOBEX]),
        kind=st.sampled_from([Kind.MODEL, Kind.DATASET]),
        object_id=st.sampled_from([ObjectId("m1"), ObjectId("m2"), ObjectId("*")]),
    ),
    context=st.builds(
        Context, st.sampled_from(["", "x", "u1"]), st.sampled_from(["", "x"]), st.sampled_from([0, 1, 2**62])
    ),
    granted=st.sampled_from([frozenset(), frozenset({GLOBEX})]),
)


def said(opinion: Any) -> tuple[Any, ...]:
    # The engine's words about a failure may name what it was not told; they are for nobody but the log.
    return opinion.verdict, opinion.policies, opinion.error is None


@settings(max_examples=600, deadline=None)
@given(st.lists(POLICY, min_size=1, max_size=3), st.lists(QUESTIONS, min_size=2, max_size=12))
def test_a_kept_opinion_is_what_the_whole_question_gets(texts: list[str], questions: list[Question]) -> None:
    try:
        policies = cedarpy.PolicySet.from_str("\n".join(texts))
    except ValueError:  # no policy at all
        return
    kept = Opinions(policies, kept=64)
    for asked in questions:
        assert said(kept.about(asked)) == said(ask(asked, policies))


SIGHT = {
    "principal": Sight(principal=True, principal_name=True),
    "resource": Sight(object=True),
    "context": Sight(name=True, alias=True, version=True),
}


@settings(max_examples=300, deadline=None)
@given(CONDITIONS, st.sampled_from(sorted(SIGHT)))
def test_what_a_whole_variable_is_used_for_is_seen(condition: str, variable: str) -> None:
    text = f"permit (principal, action, resource) when {{ {condition} && {variable} == {variable} }};"
    try:
        policies = cedarpy.PolicySet.from_str(text)
    except ValueError:
        return
    sight = Sights(policies).of(READ)
    assert sight | SIGHT[variable] == sight
    assert sight | NOTHING == sight
    assert sight | EVERYTHING == EVERYTHING
