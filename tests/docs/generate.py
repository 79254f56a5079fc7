"""Writes the parts of the reference that code knows best; a test fails when a page is not what this would write.

Run it after a change: ``python tests/docs/generate.py``. A generated part stands between two comments in a page; the
rest of the page is written by hand and left alone.
"""

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import cache
from itertools import chain
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, TypeGuard, TypeVar

import click

from modelkeep.cli.main import main as sdk_command
from modelkeep_platform.access.shipped import OWN_SIDE, compiled
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.cli.main import main as platform_command
from modelkeep_platform.core.actions import GRANTABLE, PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.errors import CallerError, ModelkeepError, RateLimitedError
from modelkeep_platform.http.issuer import _oauth_error
from modelkeep_platform.http.status import status_of
from modelkeep_platform.identity.issuer import OAuthError
from modelkeep_platform.models.graph.ops import OPS, Attr, Op
from modelkeep_platform.privacy import ops as private_ops

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
REFERENCE: Final = ROOT / "docs" / "reference"
SOURCES: Final = ROOT / "platform" / "src" / "modelkeep_platform"
_BEGIN, _END = "<!-- generated: {} -->", "<!-- end of {} -->"


def tree_of(path: Path) -> ast.Module:
    """Parse a source.

    Again when CPython mixed up how deep it was: before 3.11.8 all threads share that number, and another that parses
    meanwhile makes a SystemError of it (python/cpython#106905).
    """
    text = path.read_text(encoding="utf-8")
    for _ in range(9):
        try:
            return ast.parse(text)
        except SystemError:
            continue
    return ast.parse(text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines += [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join(lines)


# --- settings, commands -----------------------------------------------------------------------------


def settings() -> str:
    """Return the table of settings, explained by the docstring of `Settings`."""
    explained = dict(re.findall(r"^ {4,}(\w+): (.+(?:\n {8,}.+)*)", inspect.getdoc(Settings) or "", re.MULTILINE))
    rows = []
    for item in fields(Settings):
        default = "required" if "MISSING" in repr(item.default) else f"`{json.dumps(item.default)}`"
        kind = getattr(item.type, "__name__", str(item.type))
        rows.append([f"`{item.name}`", kind, default, re.sub(r"\s+", " ", explained[item.name])])
    return table(["setting", "type", "default", "meaning"], rows)


def command(root: click.Command, name: str) -> str:
    """Return every command below `root` with its options."""
    parts: list[str] = []

    def walk(at: click.Command, path: str) -> None:
        if isinstance(at, click.Group):
            if at is not root:
                parts.append(f"### `{path}`\n\n{first(at.help)}")
            for sub in sorted(at.commands):
                walk(at.commands[sub], f"{path} {sub}")
            return
        arguments = [one.make_metavar(click.Context(at)) for one in at.params if isinstance(one, click.Argument)]
        parts.append(f"#### `{' '.join([path, *arguments])}`\n\n{whole(at.help)}")
        rows = [[option_names(one), option_help(one)] for one in at.params if shown(one)]
        if rows:
            parts.append(table(["option", "meaning"], rows))

    options = [one for one in root.params if shown(one)]
    if options:
        rows = [[option_names(one), option_help(one)] for one in options]
        parts.append(table(["option of every command", "meaning"], rows))
    walk(root, name)
    return "\n\n".join(parts)


def shown(parameter: click.Parameter) -> TypeGuard[click.Option]:
    """Return whether it is an option that people give; the others are between our own processes."""
    return isinstance(parameter, click.Option) and not parameter.hidden


def option_names(option: click.Option) -> str:
    """Return an option's spellings."""
    names = ", ".join(f"`{name}`" for name in option.opts)
    return names if option.is_flag else f"{names} {option.make_metavar(click.Context(click.Command('x')))}"


def option_help(option: click.Option) -> str:
    """Return what an option does, and where its default comes from."""
    text = option.help or ""
    if option.required:
        text += " Required."
    if option.envvar:
        text += f" Environment: `{option.envvar}`."
    if option.show_default and option.default not in (None, False):
        text += f" Default: `{option.default}`."
    return text.strip()


def first(text: str | None) -> str:
    """Return the first paragraph."""
    return whole(text).partition("\n\n")[0]


def whole(text: str | None) -> str:
    """Return a help text with its paragraphs."""
    return "\n\n".join(re.sub(r"\s+", " ", part) for part in inspect.cleandoc(text or "").split("\n\n"))


# --- errors -----------------------------------------------------------------------------------------


def error_codes() -> dict[str, tuple[set[int], set[str]]]:
    """Return every stable code in the sources but those of OAuth: its statuses and what it says."""
    classes = {name: kind for name, kind in all_errors().items() if kind is not OAuthError}
    found: dict[str, tuple[set[int], set[str]]] = {}

    def add(code: str, kind: type[ModelkeepError], text: str) -> None:
        statuses, texts = found.setdefault(code, (set(), set()))
        statuses.add(status_of(instance(kind, code)))
        texts.add(text)

    for path in sorted(SOURCES.rglob("*.py")):
        tree = tree_of(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name in classes:
                kind = classes[node.name]
                if "code" in vars(kind):
                    add(kind.code, kind, first(kind.__doc__).rstrip("."))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                code = next((word.value for word in node.keywords if word.arg == "code"), None)
                if isinstance(code, ast.Constant) and isinstance(code.value, str) and name in classes:
                    add(code.value, classes[name], says(node, tree))
    return found


def says(node: ast.Call, tree: ast.Module) -> str:
    """Return the message of an error that is raised, with … where it differs from case to case."""
    if not node.args:
        return ""
    message = node.args[0]
    if isinstance(message, ast.Name):
        # Named just above: the nearest assignment before the call.
        named = [
            one
            for one in ast.walk(tree)
            if isinstance(one, ast.Assign)
            and one.lineno < node.lineno
            and any(isinstance(target, ast.Name) and target.id == message.id for target in one.targets)
        ]
        message = max(named, key=lambda one: one.lineno).value if named else constants().get(message.id, message)
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in message.values)
    return ""


@cache
def constants() -> dict[str, ast.expr]:
    """Return what the sources' modules call by a name in capitals, for messages that several errors have."""
    return {
        one.target.id: one.value
        for path in SOURCES.rglob("*.py")
        for one in tree_of(path).body
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and isinstance(one.value, ast.Constant)
        and one.target.id.isupper()
    }


def all_errors() -> dict[str, type[ModelkeepError]]:
    """Return every error class of the platform by its name; importing the sources declares them."""
    import importlib

    for path in SOURCES.rglob("*.py"):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        if parts[-1] not in {"__main__", "env"} and "migrations" not in parts:
            importlib.import_module(".".join(part for part in parts if part != "__init__"))

    def below(kind: type[ModelkeepError]) -> dict[str, type[ModelkeepError]]:
        found = {kind.__name__: kind}
        for one in kind.__subclasses__():
            found |= below(one)
        return found

    return below(ModelkeepError)


def instance(kind: type[ModelkeepError], code: str) -> ModelkeepError:
    """Return an error of a class with a code, for the table of statuses."""
    made = kind.__new__(kind)
    made.message, made.error_code, made.details = "", code, {}
    return made


def oauth_codes() -> dict[str, tuple[set[str], set[str]]]:
    """Return every code that the issuer answers as `error`: its statuses and what it says.

    The issuer is asked, once for each of its own refusals and once for each class of the platform's errors.
    """
    found: dict[str, tuple[set[str], set[str]]] = {}

    def add(error: ModelkeepError, text: str, *, own: bool) -> None:
        answer = _oauth_error(error)
        statuses, texts = found.setdefault(json.loads(bytes(answer.body))["error"], (set(), set()))
        statuses.add(str(answer.status_code) if own else f"{answer.status_code // 100}xx")
        texts.add(text)

    for path in sorted(SOURCES.rglob("*.py")):
        tree = tree_of(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == OAuthError.__name__:
                code = next((word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)), "")
                add(instance(OAuthError, str(code or OAuthError.code)), says(node, tree), own=True)
    for kind in all_errors().values():
        if issubclass(kind, RateLimitedError):
            add(RateLimitedError("", retry_after_s=1), "too many tries; wait as long as `Retry-After` says", own=True)
        elif issubclass(kind, CallerError) and kind is not OAuthError:
            add(
                instance(kind, kind.code),
                "what is refused beside OAuth, with its own status",
                own=False,
            )
        elif kind is not OAuthError:
            add(instance(kind, kind.code), "the platform could not do it, with that error's status", own=False)
    return found


def sdk_codes() -> dict[str, set[str]]:
    """Return every code that the SDK's errors have of themselves, and when; the server's come through as they are."""
    from modelkeep import errors
    from modelkeep._core.answers import _DEFAULT_CODES

    found: dict[str, set[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ModelkeepError) and "code" in vars(kind):
            found.setdefault(kind.code, set()).add(first(kind.__doc__).rstrip("."))
    for path in sorted((ROOT / "sdk" / "src").rglob("*.py")):
        tree = tree_of(path)
        for node in ast.walk(tree):
            given = {word.arg: word.value for word in node.keywords} if isinstance(node, ast.Call) else {}
            if isinstance(node, ast.Call) and {"code", "status"} <= set(given):
                for one in ast.walk(given["code"]):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        text = says(node, tree)
                        found.setdefault(one.value, set()).add(text or "the server refused it and named no code")
    for kind, code in _DEFAULT_CODES.items():
        found.setdefault(code, set()).add(f"`{kind.__name__}` of a server that named no code")
    return found


def oauth_table() -> str:
    """Return the table of the issuer's codes."""
    return table(
        ["code", "status", "says, or when"],
        [
            [f"`{code}`", ", ".join(sorted(statuses)), "; ".join(sorted(filter(None, texts)))]
            for code, (statuses, texts) in sorted(oauth_codes().items())
        ],
    )


def sdk_code_table() -> str:
    """Return the table of the SDK's own codes."""
    rows = [[f"`{code}`", "; ".join(sorted(texts))] for code, texts in sorted(sdk_codes().items())]
    return table(["code", "says, or when"], rows)


def error_table() -> str:
    """Return the table of codes."""
    rows = []
    for code, (statuses, texts) in sorted(error_codes().items()):
        said = "; ".join(f"{text}" for text in sorted(texts) if text)[:400]
        rows.append([f"`{code}`", ", ".join(map(str, sorted(statuses))), said])
    return table(["code", "status", "says, or when"], rows)


# --- actions ----------------------------------------------------------------------------------------


def action_table() -> str:
    """Return who may do what by the shipped policies: asked of the engine, not read from a list."""
    from modelkeep_platform.access.engine import Verdict, ask, question
    from modelkeep_platform.core.callers import PrincipalKind, TenantCaller
    from modelkeep_platform.core.ids import ObjectId, PrincipalId, RequestId, TenantId
    from modelkeep_platform.core.refs import Kind, ResourceRef

    tenant = TenantId("00000000-0000-4000-8000-000000000000")
    kinds = {str(kind): kind for kind in Kind}
    rows = []
    for action in sorted(Action):
        noun = str(action).partition(":")[0]
        kind = {"issuer": Kind.PLATFORM, "budget": Kind.DATASET, "audit": Kind.AUDIT_LOG}.get(noun) or kinds[noun]
        cells = []
        for role in Role:
            caller = TenantCaller(
                tenant=tenant,
                principal=PrincipalId("p"),
                principal_kind=PrincipalKind.USER,
                name="p",
                roles=frozenset({role}),
                token_id="t",
                request_id=RequestId("r"),
            )
            ref = ResourceRef(owner=tenant, kind=kind, object_id=ObjectId("o"))
            verdict = ask(question(caller, action, ref, {}, granted=frozenset()), compiled(OWN_SIDE)).verdict
            allowed = verdict is Verdict.PERMIT and (action not in PLATFORM_ACTIONS or action is Action.AUDIT_READ)
            cells.append("yes" if allowed else "")
        operator = "yes" if action in PLATFORM_ACTIONS else ""
        grantable = "yes" if action in GRANTABLE else ""
        rows.append([f"`{action}`", *cells, operator, grantable])
    return table(["action", *(str(role) for role in Role), "operator", "can be granted"], rows)


# --- graph ------------------------------------------------------------------------------------------


def operation_table() -> str:
    """Return every operation of a graph."""
    rows = []
    for name, op in OPS.items():
        low, high = op.inputs
        attrs = ", ".join(f"`{attr}`{_hint(spec)}" for attr, spec in op.attrs.items()) or "none"
        count = str(low) if low == high else f"{low} to {high}"
        rows.append([f"`{name}`", count, attrs, _params(name, op), _private(name)])
    return table(["operation", "inputs", "attributes", "parameters", "in private training"], rows)


def _hint(spec: Attr) -> str:
    kind = {"ints": "int or list", "floats": "list of numbers", "dim": "dimension", "choice": "/".join(spec.choices)}
    text = kind.get(spec.kind, spec.kind)
    return f" ({text})" if spec.required else f" ({text}, default {json.dumps(spec.default)})"


def _example(op: Op) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, spec in op.attrs.items():
        values[name] = spec.default if not spec.required else {"ints": [1], "floats": [1.0]}.get(spec.kind, 1)
    return values


def _params(name: str, op: Op) -> str:
    if name in {"rnn", "lstm", "gru"}:
        return "`weight_ih_l{n}`, `weight_hh_l{n}`, `bias_ih_l{n}`, `bias_hh_l{n}`, each also `…_reverse`"
    if name == "transformer_encoder":
        return "`layers.{n}.` and those of `transformer_encoder_layer`"
    return ", ".join(f"`{role}`" for role in op.parameters(_example(op))) or "none"


def _private(name: str) -> str:
    try:
        private_ops.check_private_ops([("node", name)])
    except ModelkeepError as exc:
        return f"no: {exc.message.partition(';')[2].strip() or 'it mixes records'}"
    return "yes"


def graph_schema() -> dict[str, Any]:
    """Return the JSON schema of a graph, made from the operations."""
    identifier = {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.]{0,127}$"}
    dtype = {"enum": ["float32", "float64", "int64", "int32", "bool", "uint8"]}
    size = {"anyOf": [{"const": -1}, {"type": "integer", "minimum": 1, "maximum": 1 << 24}]}
    shape = {"type": "array", "maxItems": 8, "items": size}
    tensor = {"name": identifier, "dtype": dtype, "shape": shape}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Modelkeep graph, version 1",
        **_closed({"format": {"const": "modelkeep.graph/1"}, "inputs": _some(_closed(tensor), 16)}),
        "properties": {
            "format": {"const": "modelkeep.graph/1"},
            "inputs": _some(_closed(tensor), 16),
            "nodes": _some({"oneOf": [_node(name, op, identifier) for name, op in OPS.items()]}, 4096),
            "outputs": _some(_closed({**tensor, "node": identifier}), 16),
        },
        "required": ["format", "inputs", "nodes", "outputs"],
    }


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": dict(properties),
        "required": sorted(properties),
    }


def _some(items: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": most, "items": dict(items)}


def _node(name: str, op: Op, identifier: Mapping[str, Any]) -> dict[str, Any]:
    low, high = op.inputs
    attrs = {attr: _attr(spec) for attr, spec in op.attrs.items()}
    described = _closed(attrs)
    described["required"] = sorted(attr for attr, spec in op.attrs.items() if spec.required)
    return _closed(
        {
            "id": identifier,
            "op": {"const": name},
            "inputs": {"type": "array", "minItems": low, "maxItems": high, "items": identifier},
            "attrs": described,
            "params": {"type": "object", "additionalProperties": identifier},
        }
    )


def _attr(spec: Attr) -> dict[str, Any]:
    if spec.kind == "bool":
        return {"type": "boolean"}
    if spec.kind == "choice":
        return {"enum": list(spec.choices)}
    whole_number = spec.kind in {"int", "ints", "dim"}
    kind = "integer" if whole_number else "number"
    number: dict[str, Any] = {"type": kind, "minimum": spec.low, "maximum": spec.high}
    if spec.kind in {"ints", "floats"}:
        listed: dict[str, Any] = {
            "type": "array",
            "minItems": 1,
            "maxItems": 8 if whole_number else 65_536,
            "items": number,
        }
        taken: list[dict[str, Any]] = [number, listed] if whole_number else [listed]
    else:
        taken = [number]
    if not spec.required and spec.default is None:
        taken.append({"type": "null"})
    return taken[0] if len(taken) == 1 else {"anyOf": taken}


# --- api --------------------------------------------------------------------------------------------


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document, made without an installation."""
    from modelkeep_platform.http.v1 import description

    return description()


def api_table() -> str:
    """Return every route of the management API."""
    rows = []
    for path, methods in openapi_document()["paths"].items():
        for method, operation in methods.items():
            statuses = ", ".join(sorted(operation["responses"]))
            rows.append([f"`{method.upper()} {path}`", operation["summary"], f"{operation['x-action']}", statuses])
    return table(["route", "does", "action", "answers"], rows)


# --- sdk, decisions ---------------------------------------------------------------------------------


def sdk() -> str:
    """Return the SDK's public names: clients, nouns with their methods, ways to log in, errors, values."""
    import modelkeep
    import modelkeep.torch
    from modelkeep import auth, types
    from modelkeep import errors as sdk_errors
    from modelkeep._core.flows import Operation

    public = {name: getattr(modelkeep, name) for name in sorted(modelkeep.__all__) if name != "__version__"}
    top = {name: value for name, value in public.items() if not inspect.ismodule(value)}
    parts = ["### `modelkeep`", _names(top), _members(top.values())]
    client = modelkeep.Client("https://models.example", auth=None)
    nouns = {"client": client, **{name: one for name, one in vars(client).items() if not name.startswith("_")}}
    for noun, one in nouns.items():
        found = {
            name: value
            for kind in reversed(type(one).__mro__)
            for name, value in vars(kind).items()
            if isinstance(value, Operation)
        }
        methods = [
            [f"`{name}{_signature(getattr(one, name))}`", first(value.__doc__)] for name, value in sorted(found.items())
        ]
        intro = "" if noun == "client" else f"\n\n{whole(type(one).__doc__)}"
        parts += [f"### `{noun}`{intro}", table(["method", "does"], methods)]
    client.close()
    others = {name: getattr(auth, name) for name in sorted(auth.__all__) if name not in top}
    parts += ["### `modelkeep.auth`", _names(others), _members(others.values())]
    traced = {name: getattr(modelkeep.torch, name) for name in sorted(modelkeep.torch.__all__)}
    parts += ["### `modelkeep.torch`", _names(traced), _members(traced.values())]
    kinds = [kind for kind in _own(sdk_errors, type) if issubclass(kind, Exception)]
    shown = [[f"`{_called(kind)}`", f"`{kind.__bases__[0].__name__}`", first(kind.__doc__)] for kind in kinds]
    functions = {one.__name__: one for one in _own(sdk_errors, FunctionType)}
    parts += ["### `modelkeep.errors`", table(["error", "is a", "means"], shown)]
    parts += [_members(kind for kind in kinds if kind not in top.values()), _names(functions)]
    values = _own(types, type)
    named = [[f"`{kind.__name__}`", ", ".join(_fields(kind)), first(kind.__doc__)] for kind in values]
    parts += ["### `modelkeep.types`", table(["value", "fields", "is"], named), _members(values)]
    return "\n\n".join(filter(None, parts))


def _own(module: ModuleType, kind: type[T]) -> list[T]:
    """Return what a module declares itself and calls by a public name."""
    named = [value for name, value in vars(module).items() if isinstance(value, kind) and not name.startswith("_")]
    return [value for value in named if getattr(value, "__module__", "") == module.__name__]


def _names(named: Mapping[str, Any]) -> str:
    return table(["name", "is"], [[f"`{_called(value)}`", first(value.__doc__)] for value in named.values()])


def _called(value: Any) -> str:
    """Return a name as it is called; a class that is made as the one above it has no arguments of its own."""
    made_here = not inspect.isclass(value) or "__init__" in vars(value)
    protocol = getattr(value, "_is_protocol", False)
    return f"{value.__name__}{_signature(value) if made_here and not protocol else ''}"


def _members(kinds: Iterable[type]) -> str:
    """Return the table of the classes' methods and properties, those of the nouns' operations left out."""
    rows = []
    for kind in kinds:
        if not inspect.isclass(kind):
            continue
        for name, value in sorted(_own_members(kind).items()):
            call = "" if isinstance(value, property) else _signature(getattr(kind, name))
            rows.append([f"`{kind.__name__}.{name}{call}`", first(inspect.getdoc(getattr(kind, name)))])
    return table(["method or property", "does"], rows) if rows else ""


def _own_members(kind: type) -> dict[str, object]:
    """Return the public methods and properties that the SDK gives a class, by name; operations of nouns are apart."""
    return {
        name: value
        for base in reversed(kind.__mro__)
        if base.__module__.partition(".")[0] == "modelkeep"
        for name, value in vars(base).items()
        if isinstance(value, FunctionType | property | staticmethod | classmethod) and not name.startswith("_")
    }


def _signature(call: Callable[..., object]) -> str:
    found = inspect.signature(call)
    kept = [one.replace(annotation=one.empty) for name, one in found.parameters.items() if name != "self"]
    return str(inspect.Signature(kept))


def _fields(kind: type) -> list[str]:
    return [f"`{name}`" for name in getattr(kind, "__dataclass_fields__", getattr(kind, "__annotations__", {}))]


def decisions() -> str:
    """Return the list of decision records."""
    rows = []
    for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        number, _, title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(": ")
        rows.append([f"[{number}]({path.name})", title])
    return table(["record", "decides"], rows)


BLOCKS: Final[Mapping[str, tuple[str, Callable[[], str]]]] = {
    "settings": ("settings.md", settings),
    "modelkeep": ("cli.md", lambda: command(sdk_command, "modelkeep")),
    "modelkeep-platform": ("cli-platform.md", lambda: command(platform_command, "modelkeep-platform")),
    "error codes": ("errors.md", error_table),
    "codes of the issuer": ("errors.md", oauth_table),
    "codes of the SDK": ("errors.md", sdk_code_table),
    "actions": ("policies.md", action_table),
    "operations": ("graph.md", operation_table),
    "routes": ("api.md", api_table),
    "public names": ("sdk.md", sdk),
    "records": ("../adr/README.md", decisions),
}
"""Generated parts: which page each stands in and what makes it."""

FILES: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "openapi.json": openapi_document,
    "graph.schema.json": graph_schema,
}


def rendered(name: str) -> tuple[Path, str, str]:
    """Return a page's path, what it holds, and what it should hold."""
    page, make = BLOCKS[name]
    path = REFERENCE / page
    now = path.read_text(encoding="utf-8")
    begin, end = _BEGIN.format(name), _END.format(name)
    head, found, rest = now.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path.name} has no part `{name}`: add {begin} and {end}")
    return path, now, f"{head}{begin}\n\n{make()}\n\n{end}{tail}"


def rendered_file(name: str) -> tuple[Path, str, str]:
    """Return a generated file's path, what it holds, and what it should hold."""
    path = REFERENCE / name
    now = path.read_text(encoding="utf-8") if path.exists() else ""
    return path, now, json.dumps(FILES[name](), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write whatever differs."""
    # One after the other: a page can have several parts.
    for path, now, wanted in chain(map(rendered, BLOCKS), map(rendered_file, FILES)):
        if now != wanted:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
