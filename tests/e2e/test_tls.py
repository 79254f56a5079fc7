"""TLS by certificate and key; beyond this machine nothing is served without it, unless that is said aloud."""

import ssl
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from modelkeep import Client, ClientCredentials
from modelkeep.errors import ConnectionFailedError
from modelkeep_platform.cli.main import main
from services.certificates import certificate
from services.house import Installation, ServerProcess, free_port, wait_until

pytestmark = pytest.mark.e2e


def test_a_client_that_trusts_the_certificate_gets_through_and_no_other(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    made = Installation(tmp_path, url=f"https://127.0.0.1:{free_port()}").init()
    server = ServerProcess(made, options=("--tls-cert", str(chain), "--tls-key", str(key)))
    context = ssl.create_default_context(cafile=str(chain))

    def ready() -> bool:
        try:
            return httpx.get(f"{made.url}/v2/health/ready", verify=context).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, "the server to answer")
        login = ClientCredentials("operator", made.operator_secret)
        with Client(made.url, auth=login, ca_file=chain, state_dir=tmp_path / "state") as operator:
            assert operator.tenants.list() == []
        stranger = Client(made.url, auth=login, state_dir=tmp_path / "other", retries=0)
        with stranger, pytest.raises(ConnectionFailedError, match="certificate"):
            stranger.tenants.list()
        with pytest.raises(httpx.TransportError):
            httpx.get(made.url.replace("https://", "http://") + "/v2/health/ready")
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--host", "0.0.0.0"), "tls_required"),  # noqa: S104 -- refused
        (("--host", "::"), "tls_required"),
        (("--host", "models.example"), "tls_required"),
        (("--tls-cert", "{cert}"), "tls_incomplete"),
        (("--tls-key", "{key}"), "tls_incomplete"),
    ],
    ids=["every address", "every IPv6 address", "a name", "half a pair", "the other half"],
)
def test_what_is_not_served(tmp_path: Path, options: tuple[str, ...], code: str) -> None:
    chain, key = certificate(tmp_path)
    made = Installation(tmp_path).init()
    named = [option.format(cert=chain, key=key) for option in options]
    shown = CliRunner().invoke(main, ["serve", "--data", str(made.data), *named])
    assert shown.exit_code == 1
    assert shown.stderr.startswith(f"error ({code})"), shown.stderr


def test_a_plain_base_url_is_for_this_machine_alone(tmp_path: Path) -> None:
    wrong = ["init", "--data", str(tmp_path / "d"), "--root-key", str(tmp_path / "k")]
    shown = CliRunner().invoke(main, [*wrong, "--base-url", "http://models.example"])
    assert (shown.exit_code, shown.stderr.startswith("error (invalid_setting)")) == (1, True)
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "k").exists()
