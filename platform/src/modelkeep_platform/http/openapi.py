"""The OpenAPI 3.1 document, made from the declared endpoints and their types; nothing is written twice."""

import re
from collections.abc import Iterable
from typing import Any, Final

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
    types = [wanted for endpoint in served for wanted in (endpoint.body, endpoint.returns) if _is_json(wanted)]
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


def _is_json(wanted: object) -> bool:
    return wanted is not None and wanted is not bytes


def _operation(endpoint: Endpoint, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}_{endpoint.path}").strip("_"),
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {
            str(endpoint.status): _success(endpoint, by_type),
            "default": {
                "description": "refused or failed",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
        "x-action": str(endpoint.guard) if isinstance(endpoint.guard, Action) else f"none: {endpoint.guard.reason}",
    }
    if isinstance(endpoint.guard, Public):
        operation["security"] = []
    if endpoint.body is bytes:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    elif endpoint.body is not None:
        schema = by_type[id(endpoint.body)]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _success(endpoint: Endpoint, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if endpoint.media_type != "application/json":
        return {"description": "done", "content": {endpoint.media_type: {}}}
    if endpoint.returns is None:
        return {"description": "done"}
    return {"description": "done", "content": {"application/json": {"schema": by_type[id(endpoint.returns)]}}}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    text = {"type": "string"}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": text} for name in _PARAMETER.findall(endpoint.path)
    ]
    parameters += [{"name": name, "in": "query", "required": False, "schema": text} for name in endpoint.query]
    if endpoint.method == "POST" and not isinstance(endpoint.guard, Public):
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": text})
    return parameters
