"""The package: light to import, typed, and checked arguments."""

import inspect
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import modelkeep
from fakes.server import BASE, FakePlatform
from modelkeep import errors
from modelkeep._core.drivers import SyncDriver
from modelkeep._core.urls import path, server_url
from modelkeep.resources.models import Models

HEAVY = ("httpx", "cryptography", "rich", "numpy", "torch", "platformdirs", "click")


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, modelkeep; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_json_calls_need_no_numpy_and_no_torch() -> None:
    code = "import sys, modelkeep; modelkeep.Client('https://m.test', auth=None); print('numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_public_names_are_there() -> None:
    for name in modelkeep.__all__:
        assert getattr(modelkeep, name) is not None
        assert name in dir(modelkeep)
    with pytest.raises(AttributeError, match="`nothing`"):
        modelkeep.nothing  # noqa: B018


def test_the_package_is_typed() -> None:
    assert resources.files("modelkeep").joinpath("py.typed").is_file()


def test_operations_show_their_signature_and_docs() -> None:
    client = modelkeep.Client(BASE, auth=None)
    assert list(inspect.signature(client.models.get).parameters) == ["self", "name"]
    assert client.models.get.__doc__ == "Show a model."
    assert Models.get.__doc__ == "Show a model."
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example",
        "http://10.0.0.1:8080",
        "http://127.0.0.1.example",
        "http://localhost.example",
        "http://user@127.0.0.1:80",
        "https://user:pass@models.example",
        "https://models.example?x=1",
        "https://models.example#x",
        "ftp://models.example",
        "models.example",
        "https://",
        "https://models.example:99999",
        "https://models.example\\@evil.example",
        "https://mödels.example",
        "https://models.example/ x",
        "https://models.example\n",
        "https://" + "x" * 3000,
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        modelkeep.Client(url, auth=None)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://models.example/", "https://models.example"),
        ("https://models.example/path/", "https://models.example/path"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_addresses_that_are_taken(url: str, shown: str) -> None:
    assert server_url(url, unsafe_allow_http=False) == shown


def test_plain_http_elsewhere_has_to_be_asked_for() -> None:
    assert server_url("http://models.example", unsafe_allow_http=True) == "http://models.example"


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"timeout": -1}, {"retries": -1}, {"retries": 21}])
def test_settings_that_cannot_be(arguments: dict[str, int]) -> None:
    with pytest.raises(errors.ConfigurationError):
        modelkeep.Client(BASE, auth=None, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("segment", ["", ".", "..", "a\nb", "a\x00"])
def test_segments_that_name_another_path(segment: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        path("v1", "models", segment)


def test_segments_are_encoded() -> None:
    assert path("v1", "models", "a/b?c#d e%") == "/v1/models/a%2Fb%3Fc%23d%20e%25"
    assert path("v1", "models", "owner~name") == "/v1/models/owner~name"
    assert path("v1", "x", query={"a": 1, "b": None, "c": "d e"}) == "/v1/x?a=1&c=d+e"


def test_proxies_do_not_see_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    local, remote = (modelkeep.Client(url, auth=None) for url in ("http://127.0.0.1:1", BASE))
    assert isinstance(local._driver, SyncDriver)
    assert local._driver._options["trust_env"] is False
    assert remote._driver._options["trust_env"] is True


def test_a_client_closes_itself(platform: FakePlatform, tmp_path: Path) -> None:
    with modelkeep.Client(BASE, auth=None, transport=platform.transport(), state_dir=tmp_path) as client:
        with pytest.raises(errors.AuthenticationError):
            client.whoami()
        assert repr(client) == f"Client({BASE!r}, auth=None)"
    with pytest.raises(errors.ModelkeepError, match="closed"):
        client.whoami()


def test_enrol(platform: FakePlatform, tmp_path: Path) -> None:
    options = {"transport": platform.transport(), "state_dir": tmp_path}
    who = modelkeep.enrol(BASE, "link-1", username="ana", password="twelve letters", **options)
    assert (who.name, who.tenant.slug) == ("ana", "acme")
    with pytest.raises(modelkeep.APIError) as caught:
        modelkeep.enrol(BASE, "link-2", username="ana", password="twelve letters", **options)
    assert caught.value.status == 404
