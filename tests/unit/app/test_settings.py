"""Settings come from file and environment, each of its type; what is unknown or senseless is refused by name."""

from dataclasses import fields
from pathlib import Path

import pytest

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.settings import PREFIX, Settings
from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.core.limits import LIMITS, MIB, TenantLimits

MADE = Settings(base_url="https://models.example", root_key="/keys/root", log_origin="modelkeep/1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    settings_file.write(tmp_path, MADE)
    return tmp_path


def test_what_is_written_is_read(data: Path) -> None:
    assert settings_file.load(data, {}) == settings_file.load_file(data) == MADE
    assert (data / settings_file.FILE).stat().st_mode & 0o077 == 0


def test_the_environment_goes_before_the_file_and_is_not_written_back(data: Path) -> None:
    said = {f"{PREFIX}PORT": "9000", f"{PREFIX}LOG_FORMAT": "text", "MODELKEEP_DATA": "elsewhere", "PATH": "/bin"}
    found = settings_file.load(data, said)
    assert (found.port, found.log_format, found.base_url) == (9000, "text", MADE.base_url)
    assert settings_file.load_file(data) == MADE


def test_the_process_own_environment_is_taken(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}METRICS_PORT", "9100")
    assert settings_file.load(data).metrics_port == 9100


@pytest.mark.parametrize("field", [item.name for item in fields(Settings)])
def test_every_setting_can_come_from_the_environment(data: Path, field: str) -> None:
    value = getattr(MADE, field)
    text = str(value)
    assert getattr(settings_file.load(data, {f"{PREFIX}{field.upper()}": text}), field) == value


@pytest.mark.parametrize("name", ["PROT", "port", "", "DATA", "PORT_"])
def test_a_variable_that_is_no_setting_is_refused_by_name(data: Path, name: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        settings_file.load(data, {f"{PREFIX}{name}": "1"})
    assert caught.value.error_code == "invalid_setting"
    assert f"`{PREFIX}{name}`" in caught.value.message


@pytest.mark.parametrize(
    "text", ["", " 9", "9 ", "-1", "+9", "9.0", "0x9", "1_0", "٩", "nine", "1" * 16, "9\n"], ids=repr
)
def test_a_number_is_decimal_digits_and_is_not_repeated(data: Path, text: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        settings_file.load(data, {f"{PREFIX}PORT": text})
    assert caught.value.message == f"`{PREFIX}PORT` in the environment is a decimal number"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"port": 0}, "`port` is at least 1"),
        ({"port": 65_536}, "`port` is at most 65535"),
        ({"metrics_port": 65_536}, "`metrics_port` is at most 65535"),
        ({"metrics_port": -1}, "`metrics_port` is at least 0"),
        ({"metrics_host": "0.0.0.0"}, "`metrics_host` is a loopback address"),  # noqa: S104 -- it is refused
        ({"metrics_host": "models.example"}, "`metrics_host` is a loopback address"),
        ({"log_format": "xml"}, "`log_format` is one of json, text"),
        ({"log_level": "trace"}, "`log_level` is one of debug, info, warning, error"),
        ({"tenant_storage_mib": -1}, "`tenant_storage_mib` is at least 0"),
        ({"tenant_requests_per_minute": 0}, "`tenant_requests_per_minute` is at least 1"),
        ({"max_workers": 0}, "`max_workers` is at least 1"),
        ({"base_url": "http://models.example"}, "`base_url` uses https beyond loopback"),
        ({"base_url": "https://models.example/path"}, "`base_url` is http(s)://host[:port] without a path"),
        ({"port": "80"}, "the setting `port` is of another type"),
        ({"port": True}, "the setting `port` is of another type"),
        ({"prot": 80}, "`prot` is not a setting"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes: dict[str, object], says: str) -> None:
    values = {item.name: getattr(MADE, item.name) for item in fields(Settings)} | changes
    with pytest.raises(UnprocessableError) as caught:
        settings_file.parse(values)
    assert caught.value.error_code == "invalid_setting"
    assert says in caught.value.message


def test_a_folder_without_an_installation_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConflictError) as caught:
        settings_file.load(tmp_path, {})
    assert caught.value.error_code == "not_initialised"


@pytest.mark.parametrize("text", [b"port = ", b"\xff\xfe"], ids=repr)
def test_a_file_that_is_not_toml_is_refused(data: Path, text: bytes) -> None:
    (data / settings_file.FILE).write_bytes(text)
    with pytest.raises(UnprocessableError, match=r"settings\.toml is not TOML"):
        settings_file.load(data, {})


def test_limits_are_those_of_the_defaults_unless_set() -> None:
    assert MADE.tenant_limits == TenantLimits()
    values = {item.name: getattr(MADE, item.name) for item in fields(Settings)}
    limits = settings_file.parse(values | {"tenant_storage_mib": 3, "tenant_members": 7}).tenant_limits
    assert (limits.storage_bytes, limits.members) == (3 * MIB, 7)


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_of_a_tenant_is_a_setting_within_the_same_bounds(name: str) -> None:
    values = {item.name: getattr(MADE, item.name) for item in fields(Settings)}
    setting = name if name in values else f"tenant_{name}"
    least, most = LIMITS[name]
    for value in (least, most):
        assert getattr(settings_file.parse(values | {setting: value}).tenant_limits, name) == value
    for value, says in ((least - 1, f"at least {least}"), (most + 1, f"at most {most}")):
        with pytest.raises(UnprocessableError, match=f"`{setting}` is {says}"):
            settings_file.parse(values | {setting: value})
