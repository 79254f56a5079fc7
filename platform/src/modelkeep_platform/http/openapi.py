"""The OpenAPI 3.1 document, made from the declared endpoints and their types; nothing is written twice."""

import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.http.routing import Endpoint, Public

_PARAMETER: Final = re.compile(r"{(\w+)}")
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "request_id", "details"],
            "properties": {
                "code": {"type": "string", "description": "stable; act on it"},
                "message": {"type": "string", "description": "for people; may change"},
                "request_id": {"type": "string"},
                "details": {"type": "object"},
            },
        }
    },
}


def document(endpoints: Iterable[Endpoint], *, version: str) -> dict[str, Any]:
    """Return the document of `endpoints`.

    Args:
        endpoints: what is served.
        version: the platform's version.
    """
    served = list(endpoints)
    types = [one for endpoint in served for wanted in (endpoint.body, endpoint.returns) for one in _members(wanted)]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = {id(wanted): schema for wanted, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in served:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Modelkeep management API",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**dict(sorted(components.items())), "Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "security": [{"bearer": []}],
    }


def _members(wanted: object) -> Sequence[object]:
    """Return the types of a body or answer: none, one, or those of a union."""
    if wanted is None or wanted is bytes:
        return ()
    return get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)


def _schema(wanted: object, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    found = [by_type[id(one)] for one in _members(wanted)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _operation(endpoint: Endpoint, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}_{endpoint.path}").strip("_"),
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {
            str(endpoint.status): _success(endpoint, by_type),
            **{str(status): _refusal(status) for status in _refusals(endpoint)},
        },
        "x-action": str(endpoint.guard) if isinstance(endpoint.guard, Action) else f"none: {endpoint.guard.reason}",
    }
    if isinstance(endpoint.guard, Public):
        operation["security"] = []
    if endpoint.body is bytes:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    elif endpoint.body is not None:
        content = {"application/json": {"schema": _schema(endpoint.body, by_type)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


_WHY: Final = {
    400: "the bytes are not what is wanted here",
    401: "no token, or one that does not verify",
    403: "policy denies it",
    404: "there is no such object, or the caller may not see it",
    408: "the body did not arrive in time",
    409: "the state does not allow it",
    413: "more bytes than the limit",
    415: "the body has a Content-Encoding",
    422: "well-formed, but refused for what it says",
    429: "too many calls; `Retry-After` says when to try again",
    500: "the platform could not do it",
    503: "a part is down or starting; try again later",
}


def _refusals(endpoint: Endpoint) -> list[int]:
    """Return every status with which the endpoint can refuse."""
    found = {400, 429, 500, 503}
    if not isinstance(endpoint.guard, Public):
        found |= {401, 403}
    if _PARAMETER.search(endpoint.path):
        found |= {404, 422}
    if endpoint.body is not None:
        found |= {404, 408, 413, 415, 422}
    if endpoint.method != "GET":
        found.add(409)
    return sorted(found)


def _refusal(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": _WHY[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if status == 429:  # noqa: PLR2004 -- RFC 6585's number is the name
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return described


def _success(endpoint: Endpoint, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if endpoint.media_type != "application/json":
        return {"description": "done", "content": {endpoint.media_type: {}}}
    if endpoint.returns is None:
        return {"description": "done"}
    return {"description": "done", "content": {"application/json": {"schema": _schema(endpoint.returns, by_type)}}}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    text = {"type": "string"}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": text} for name in _PARAMETER.findall(endpoint.path)
    ]
    parameters += [{"name": name, "in": "query", "required": False, "schema": text} for name in endpoint.query]
    if endpoint.method == "POST" and not isinstance(endpoint.guard, Public):
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": text})
    return parameters
