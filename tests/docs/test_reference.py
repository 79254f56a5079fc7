"""The docs say what the code does: generated parts are current, every name has its place, every link leads on."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modelkeep.auth
import modelkeep.errors
import modelkeep.torch
import modelkeep.types
from docs.generate import BLOCKS, FILES, ROOT, error_codes, oauth_codes, rendered, rendered_file, sdk_codes
from modelkeep_platform.models.graph.format import parse

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])
HINT = "run `python tests/docs/generate.py`"


@pytest.mark.parametrize("name", BLOCKS)
def test_generated_parts_are_current(name: str) -> None:
    path, now, wanted = rendered(name)
    assert now == wanted, f"{path.name} is not what the code says; {HINT}"


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_current(name: str) -> None:
    path, now, wanted = rendered_file(name)
    assert now == wanted, f"{path.name} is not what the code says; {HINT}"


def test_every_error_says_something() -> None:
    silent = [code for code, (_, texts) in error_codes().items() if not any(texts)]
    assert silent == []


def test_every_code_of_the_issuer_and_of_the_sdk_says_something() -> None:
    said = {**{code: texts for code, (_, texts) in oauth_codes().items()}, **sdk_codes()}
    assert [code for code, texts in said.items() if not all(texts)] == []
    # One of each way to have a code: translated, given to a call, by default, by class, for want of another.
    assert {"temporarily_unavailable", "slow_down", "unauthorized_client"} <= set(oauth_codes())
    assert {"login_required", "no_ready_version", "login_refused", "timeout", "unknown", "internal"} <= set(sdk_codes())


def test_every_public_name_of_the_sdk_is_in_its_reference() -> None:
    page = (ROOT / "docs/reference/sdk.md").read_text()
    parts = {part.partition("\n")[0].strip("`"): part for part in page.split("\n### ")}
    names = [*sdk_names(), *noun_names()]
    assert {
        ("modelkeep.types", "Download.save"),
        ("modelkeep.types", "Job.done"),
        ("modelkeep.errors", "printable"),
        ("modelkeep", "DeviceCode.no_prompt"),
        ("modelkeep", "AsyncClient.base_url"),
        ("jobs", "wait"),
    } <= set(names)
    # A name ends in its arguments or, where it is not called, in itself.
    assert [name for part, name in names if not re.search(rf"`{re.escape(name)}[`(]", parts[part])] == []


def sdk_names() -> Iterator[tuple[str, str]]:
    """Give every public name of the SDK's modules and of what they hold, with its part of the page."""
    seen: set[object] = set()
    for module in (modelkeep, modelkeep.auth, modelkeep.errors, modelkeep.torch, modelkeep.types):
        declared = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", declared):
            value = getattr(module, name)
            if name.startswith("_") or inspect.ismodule(value) or value in seen:
                continue
            seen.add(value)
            yield module.__name__, name
            if inspect.isclass(value):
                yield from ((module.__name__, f"{name}.{member}") for member in member_names(value))


def member_names(kind: type) -> Iterator[str]:
    """Give the names of a class's public methods and properties that are the SDK's own; its nouns' are apart."""
    for name in dir(kind):
        value = inspect.getattr_static(kind, name)
        code = getattr(value, "fget", getattr(value, "__func__", value))
        if not name.startswith("_") and inspect.isfunction(code) and code.__module__.startswith("modelkeep"):
            yield name


def noun_names() -> Iterator[tuple[str, str]]:
    """Give every public name of a client's nouns, and of the client itself what it does at the server."""
    with modelkeep.Client("https://models.example", auth=None) as client:
        for noun, one in {"client": client, **vars(client)}.items():
            if not noun.startswith("_"):
                kind = type(one)
                called = [name for name in dir(kind) if not name.startswith("_") and callable(getattr(one, name))]
                ours = set(member_names(kind)) if noun == "client" else set()
                yield from ((noun, name) for name in called if name not in ours and hasattr(kind, name))


def test_a_code_has_one_status() -> None:
    # OAuth fixes the codes of the token endpoint; ours mean one thing each.
    many = {code: statuses for code, (statuses, _) in error_codes().items() if len(statuses) > 1}
    assert many == {}


def test_the_openapi_document_refers_to_what_is_there() -> None:
    document: Any = json.loads((ROOT / "docs/reference/openapi.json").read_text())
    assert document["openapi"].startswith("3.1.")
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"], name
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


def test_the_graph_of_the_page_is_a_graph() -> None:
    page = (ROOT / "docs/reference/graph.md").read_text()
    example = re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0]
    assert parse(example.encode()).outputs[0].name == "y"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_pages_that_sources_name_are_there() -> None:
    for path in [*(ROOT / "sdk/src").rglob("*.py"), *(ROOT / "platform/src").rglob("*.py"), *ROOT.glob("docs/**/*.py")]:
        for page in re.findall(r"docs/[\w./-]+\.(?:md|json)", path.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{path.name} names {page}"
