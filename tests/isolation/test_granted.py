"""The granted column: every verb that can be granted, every row, every role, with the exact answer.

A grant opens the rows that its own verb decides, to roles that may do so at home; on the same object every other row
says that it is not granted, and everything else stays as if it were not there.
"""

from collections.abc import Iterator
from typing import Literal

import pytest

from isolation.routes import EVERY_ROLE, WITH_IDS, Asked, code_of, endpoint_of, guard_of, lacking, seen
from isolation.things import Things
from modelkeep_platform.core.actions import GRANTABLE, Action
from services.evidence import Evidence
from services.house import House

pytestmark = pytest.mark.e2e
FORBIDDEN = (403, "forbidden")
CODES = {200: "", 404: "not_found", 422: "invalid_name"}


@pytest.fixture(scope="module", params=sorted(GRANTABLE))
def verb(request: pytest.FixtureRequest, house: House, things: Things) -> Iterator[Action]:
    """A verb that Acme granted Globex on the one object of its kind, and nothing else."""
    verb: Action = request.param
    kind: Literal["model", "dataset"] = "model" if verb.startswith("model:") else "dataset"
    grant = house.acme.admin.grants.create(kind, things.own[kind], grantee="globex", actions=[verb])
    yield verb
    house.acme.admin.grants.revoke(grant.id)
    with house.http(house.globex.admin) as http:
        for asked in WITH_IDS:
            after, never = (asked.call(http, ids) for ids in (things.foreign, things.missing))
            assert seen(after) == seen(never), f"{asked} after the grant of {verb} was revoked"


def expected(asked: Asked, guard: Action, verb: Action, role: str) -> tuple[tuple[int, str], Action, str]:
    """Return status and code (none for what is done), the action that decides, and the reason of a refusal."""
    lacks = lacking(role, asked.row.first)
    if lacks is not None:
        return FORBIDDEN, lacks, f"no policy permits `{lacks}` to the roles `{role}`"
    decides = asked.deciding(guard)[-1]
    if asked.row.own_only or verb.partition(":")[0] not in asked.kinds():
        status = asked.row.unknown
        return (status, CODES[status]), guard if status == 422 else decides, ""
    if decides != verb:
        return FORBIDDEN, decides, f"`{decides}` is not granted on this object"
    if lacking(role, (verb,)):
        return FORBIDDEN, decides, f"no policy permits `{verb}` to the roles `{role}`"
    return (0, ""), decides, ""


@pytest.mark.parametrize("role", EVERY_ROLE)
def test_a_grant_opens_exactly_its_verb_on_its_object(
    house: House, things: Things, evidence: Evidence, verb: Action, role: str
) -> None:
    opened = set[str]()
    with house.http(house.globex.role(role)) as http:
        for asked in WITH_IDS:
            guard = guard_of(house, asked.route)
            assert isinstance(guard, Action)
            (status, code), decides, reason = expected(asked, guard, verb, role)
            answer = asked.call(http, things.foreign)
            about = f"{asked} {answer.text[:300]}"
            if status in {0, 200}:
                data_plane = asked.route[1].startswith("/v2/")
                assert answer.status_code == (200 if data_plane else endpoint_of(house, asked.route).status), about
                opened |= set() if status else {str(asked)}
                if asked.route == ("POST", "/v1/jobs"):
                    house.globex.admin.jobs.cancel(answer.json()["id"])
                continue
            assert (answer.status_code, code_of(answer)) == (status, code), about
            assert reason in answer.text, about
            entries = evidence.entries(answer.headers["x-request-id"])
            assert [(one.tenant, one.action, one.outcome) for one in entries] == [("globex", decides, "denied")], about
    assert bool(opened) == (lacking(role, (verb,)) is None), opened


def test_what_was_predicted_by_a_grant_is_what_the_owner_gets(house: House, things: Things, verb: Action) -> None:
    if verb is not Action.MODEL_PREDICT:
        return
    answers = [
        client.predict(name, [[1.0, 1.0]])
        for client, name in ((house.acme.admin, things.own["model"]), (house.globex.admin, things.foreign["model"]))
    ]
    assert repr(answers[0]) == repr(answers[1])
