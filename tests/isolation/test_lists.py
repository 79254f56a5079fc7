"""What lists show: the caller's own tenant and nothing else, page by page, also from a cursor of another tenant's."""

from typing import Any

import httpx
import pytest

from isolation.routes import LISTS, Asked, of, seen
from isolation.things import Things
from services.evidence import Evidence
from services.house import House

pytestmark = pytest.mark.e2e
PAGES = 12
Item = dict[str, Any]


def pages(http: httpx.Client, path: str, *, limit: int, most: int) -> list[Item]:
    """Return the items of at most `most` pages."""
    items, cursor = list[Item](), None
    for _ in range(most):
        query = {"limit": limit, **({"cursor": cursor} if cursor else {})}
        answer = http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return items


def identity(item: Item) -> str:
    """Return what tells an item from those of every other tenant; a budget and a policy have no id."""
    return str(item.get("id") or sorted(item.items(), key=str))


@pytest.mark.parametrize("asked", of(LISTS), ids=str)
def test_lists_show_only_what_is_own(house: House, things: Things, evidence: Evidence, asked: Asked) -> None:
    path = asked.route[1]
    with house.http(house.acme.admin) as acme, house.http(house.globex.admin) as globex, evidence.nothing_changes():
        theirs, ours = (pages(http, path, limit=200, most=100) for http in (acme, globex))
        one_by_one = pages(globex, path, limit=1, most=PAGES)
        acmes = acme.get("/v1/whoami").json()["tenant"]["id"]
    assert theirs
    assert not {identity(item) for item in theirs} & {identity(item) for item in ours}
    # An owner is named by its slug, who acted by the tenant's id, which also the entries of its own log have.
    assert not [item for item in ours if {"acme", acmes} & {item.get("owner"), item.get("actor_tenant")}]
    if path == "/v1/audit/entries":
        assert acmes in {item["actor_tenant"] for item in theirs}
    # One at a time: nothing of others stands between, and nothing is left out.
    whole = [identity(item) for item in ours][:PAGES]
    assert [identity(item) for item in one_by_one][: len(whole)] == whole


@pytest.mark.parametrize("asked", of(LISTS), ids=str)
def test_a_cursor_of_another_tenants_list_shows_only_what_is_own(
    house: House, things: Things, evidence: Evidence, asked: Asked
) -> None:
    path = asked.route[1]
    with house.http(house.acme.admin) as acme:
        cursor = acme.get(path, params={"limit": 1}).json()["next_cursor"]
    assert cursor, "Acme has too few of them for a second page"
    with house.http(house.globex.admin) as globex, evidence.nothing_changes():
        answer = globex.get(path, params={"limit": 200, "cursor": cursor})
        ours = {identity(item) for item in pages(globex, path, limit=200, most=100)}
    assert answer.status_code == 200, answer.text
    assert {identity(item) for item in answer.json()["items"]} <= ours


@pytest.mark.parametrize("path", ["/v1/models/{}/versions", "/v1/jobs/{}/logs"])
def test_a_cursor_opens_no_list_of_a_foreign_thing(house: House, things: Things, path: str) -> None:
    kind = "model" if "models" in path else "job"
    with house.http(house.globex.admin) as http:
        foreign, missing = (
            http.get(path.format(ids[kind]), params={"cursor": "MQ==", "limit": 1})
            for ids in (things.foreign, things.missing)
        )
    assert seen(foreign) == seen(missing)
    assert foreign.status_code == 404
