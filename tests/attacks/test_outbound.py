"""Nothing the platform fetches can be pointed anywhere by a tenant: it fetches nothing. The family *Outbound*."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep_platform.http.routing import Endpoint
from services.house import House

SOURCES = Path(__file__).resolve().parents[2] / "platform" / "src" / "modelkeep_platform"
CLIENTS = {"httpx", "requests", "aiohttp", "urllib3", "http.client", "urllib.request", "ftplib", "smtplib", "telnetlib"}
REASONS = {
    "app/doctor/answering.py": "the operator's own command asks the operator's own `base_url`",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("outbound")))
    yield house
    house.close()


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_no_part_of_the_server_has_a_client() -> None:
    using = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(name == one or name.startswith(f"{one}.") for name in imports(path) for one in CLIENTS)
    }
    assert using == set(REASONS)


def test_sockets_are_opened_to_listen_or_to_a_child_only() -> None:
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"create_connection", "connect_ex", "open_connection"}:
                assert path.name == "channel_async.py", f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://127.0.0.1:22", "gopher://x"]
)
def test_an_address_in_a_body_is_only_text(house: House, url: str) -> None:
    with house.http(house.acme.admin) as http:
        body = {"text": f'@id("{url}") permit(principal, action, resource);'}
        assert http.post("/v1/policies/check", json=body).status_code in {200, 422}
        for field in ("jku", "x5u", "url", "webhook", "callback"):
            answer = http.post("/v1/members", json={"username": "x", "roles": ["analyst"], field: url})
            assert answer.status_code == 400


def test_no_route_takes_an_address(house: House) -> None:
    endpoints: list[Endpoint] = list(house.server.platform.edge.endpoints)
    for endpoint in endpoints:
        names = set(getattr(endpoint.body, "__struct_fields__", ())) | set(endpoint.query)
        assert not {name for name in names if "url" in name or "uri" in name or "host" in name}, endpoint.path
