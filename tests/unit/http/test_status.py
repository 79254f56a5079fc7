"""The table of statuses: every class of error has its own, and no code is there for nothing."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import modelkeep_platform
from modelkeep_platform.core.errors import CallerError, ModelkeepError, PlatformError
from modelkeep_platform.http import status as table
from modelkeep_platform.http.status import status_of
from modelkeep_platform.identity.issuer import OAuthError

CONTROL_PROCESS_ONLY = re.compile(
    r"\.(migrations|__main__)|torch_build|privacy\.(engine|ops|noise|rows)|training\.run$"
)


def every_error() -> list[type[ModelkeepError]]:
    for module in pkgutil.walk_packages(modelkeep_platform.__path__, "modelkeep_platform."):
        if not CONTROL_PROCESS_ONLY.search(module.name):
            importlib.import_module(module.name)
    found: list[type[ModelkeepError]] = []
    pending = [ModelkeepError]
    while pending:
        kind = pending.pop()
        found.append(kind)
        pending += kind.__subclasses__()
    return found


def instance(kind: type[ModelkeepError], code: str) -> ModelkeepError:
    made = kind.__new__(kind)
    made.message, made.error_code, made.details = "", code, {}
    return made


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_class_of_error_has_a_status(kind: type[ModelkeepError]) -> None:
    status = status_of(instance(kind, kind.code))
    by_name = any(issubclass(kind, known) for known, _ in table._BY_CLASS) or kind.code in table._BY_CODE
    if issubclass(kind, CallerError):
        assert 400 <= status < 500
        assert by_name or kind in {CallerError, OAuthError}, "a caller's mistake without a line in the table"
    elif issubclass(kind, PlatformError):
        assert status in {500, 503, 504}
    else:
        assert (kind, status) == (ModelkeepError, 500)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_code_is_a_word(kind: type[ModelkeepError]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]{2,40}", kind.code)


def test_a_listed_code_goes_before_its_class() -> None:
    for code, status in table._BY_CODE.items():
        assert status_of(CallerError("", code=code)) == status


def test_status_numbers_of_refusals_stand_in_one_place() -> None:
    root = Path(modelkeep_platform.__file__).parent
    elsewhere = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"\b(?:status(?:_code)?\s*=\s*[45]\d\d)\b", path.read_text(encoding="utf-8"))
    ]
    # The issuer's are those of OAuth (RFC 6749), which its table of errors does not know.
    assert elsewhere == ["http/issuer.py"]
