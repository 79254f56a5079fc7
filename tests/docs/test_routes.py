"""The routes that pages write by hand are those that there are, and no other: the data plane's and the issuer's."""

import itertools
import re
from typing import Any, cast

import pytest
from starlette.routing import Route

from docs.generate import ROOT
from fakes.core import FakeClock, tenant_caller
from fakes.edge import Edge
from modelkeep_platform.core.errors import NotFoundError
from modelkeep_platform.http.issuer import issuer_routes
from modelkeep_platform.storage.database import Database

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
SEGMENTS = ("health", "live", "ready", "models", "m", "versions", "1", "infer")


def documented(page: str, below: str) -> set[tuple[str, str]]:
    """Return method and template of each route below a path that the first column of a table of the page has."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: set[tuple[str, str]] = set()
    for cell in re.findall(r"^\| (`[A-Z][^|]*`) \|", text, re.MULTILINE):
        *before, last = re.findall(r"`([^`]+)`", cell)
        method, _, path = last.partition(" ")
        if path == below or path.startswith(f"{below}/"):
            found |= {(one, path) for one in (*before, method)}
    return found


def test_every_route_of_the_issuer_is_on_its_page_and_no_other() -> None:
    nobody = cast("Any", None)
    routes = issuer_routes(issuer=nobody, tenants=nobody, base_url="https://models.example", entropy=nobody)
    served = set()
    for route in routes:
        assert isinstance(route, Route)
        # Starlette adds HEAD to each GET.
        served |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    assert documented("docs/reference/identity.md", "/issuer") == served


class Unknown(dict[str, Any]):
    def __missing__(self, name: str) -> Exception:
        return NotFoundError("there is no such object, or you may not see it")


@pytest.fixture
def edge(database: Database) -> Edge:
    edge = Edge(database, FakeClock(), [])
    edge.versions.known = Unknown()
    edge.tokens.callers["t"] = tenant_caller()
    return edge


def has(edge: Edge, method: str, path: str) -> bool:
    answer = edge.call(method, path, token="t")
    assert answer.status in {200, 404, 405}, f"{method} {path} answers {answer.status}"
    return answer.status == 200 or (answer.status == 404 and answer.code != "no_such_path")


def test_every_route_of_the_data_plane_is_on_its_page_and_no_other(edge: Edge) -> None:
    routes = documented("docs/reference/api.md", "/v2")
    patterns = [(method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + r"\Z")) for method, path in routes]
    asked = [("v2", *rest) for length in range(3) for rest in itertools.product(SEGMENTS, repeat=length)]
    asked += [
        ("v2", "models", "m", *rest) for length in range(4) for rest in itertools.product(SEGMENTS, repeat=length)
    ]
    met = set()
    for path in ("/" + "/".join(parts) for parts in asked):
        for method in ("GET", "POST"):
            matching = [pattern for one, pattern in patterns if one == method and pattern.match(path)]
            assert has(edge, method, path) == bool(matching), f"{method} {path}"
            met |= {(method, pattern.pattern) for pattern in matching}
    assert met == {(method, pattern.pattern) for method, pattern in patterns}


def test_the_data_plane_takes_no_other_method_than_its_page_says(edge: Edge) -> None:
    routes = documented("docs/reference/api.md", "/v2")
    for path in {path for _, path in routes}:
        for method in METHODS:
            asked = path.replace("{name}", "m").replace("{version}", "1")
            assert has(edge, method, asked) == ((method, path) in routes), f"{method} {path}"
