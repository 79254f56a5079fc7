"""The OpenAPI 3.1 document, made from the declared endpoints and their types; nothing is written twice.

Every status that an operation can answer is there, with the one envelope of errors. What a parameter may be is said by
patterns and bounds; a value beyond them is refused, but within them it need not name anything.
"""

import re
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.limits import DEFAULT_PAGE, MAX_PAGE
from modelkeep_platform.http.routing import MAX_QUERY_CHARS, Endpoint, Public

_PARAMETER: Final = re.compile(r"{(\w+)}")
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "additionalProperties": False,
            "required": ["code", "message", "request_id", "details"],
            "properties": {
                "code": {"type": "string", "pattern": "^[a-z0-9_]+$", "description": "stable; act on it"},
                "message": {"type": "string", "description": "for people; may change"},
                "request_id": {"type": "string", "description": "by which the log and the operator find the call"},
                "details": {"type": "object", "description": "facts that a program may act on"},
            },
        }
    },
}
_INFERENCE_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "for people; the code is in `X-Error-Code`"}},
}
_HEADERS: Final[dict[str, Any]] = {
    "X-Request-Id": {"required": True, "schema": {"type": "string"}, "description": "names the call in the audit log"},
    "X-Error-Code": {
        "required": True,
        "schema": {"type": "string", "pattern": "^[a-z0-9_]+$"},
        "description": "stable; act on it",
    },
    "WWW-Authenticate": {"required": True, "schema": {"type": "string"}, "description": "where to log in (RFC 9728)"},
    "Retry-After": {
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
        "description": "seconds after which to try again",
    },
    "Content-Digest": {"required": True, "schema": {"type": "string"}, "description": "`sha-256=:BASE64:` (RFC 9530)"},
}
_NAME: Final = "[a-z0-9][a-z0-9._-]{0,63}"
_DECIMAL: Final = {"type": "string", "pattern": "^[0-9]{1,15}$"}
_PATH: Final[dict[str, dict[str, Any]]] = {
    "slug": {"type": "string", "pattern": "^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$"},
    "id": {"type": "string", "pattern": "^[a-z0-9_-]{1,80}$", "description": "opaque"},
    "name": {
        "type": "string",
        "pattern": f"^(?:[a-z0-9-]{{1,40}}~)?{_NAME}$",
        "description": "one's own, or `owner~name` of what another tenant granted",
    },
    "alias": {"type": "string", "pattern": f"^{_NAME}$"},
    "version": {"type": "string", "pattern": f"^{_NAME}$", "description": "a number or an alias"},
    "number": {**_DECIMAL, "description": "of the part, from 0"},
    "index": {**_DECIMAL, "description": "of the entry in the log, from 0"},
}
_SIZE: Final = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
_TEXT: Final = {"type": "string", "maxLength": MAX_QUERY_CHARS}
_QUERY: Final[dict[str, dict[str, Any]]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    "cursor": {**_TEXT, "description": "`next_cursor` of the page before"},
    "request_id": {**_TEXT, "description": "only the entries of this call"},
    "size": {**_SIZE, "description": "of the log to prove it in; by default the newest"},
    "old": {**_SIZE, "description": "of an earlier checkpoint"},
    "new": {**_SIZE, "description": "of a later checkpoint; by default the newest"},
}
_REQUIRED: Final = frozenset({"old"})


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
            "title": "Modelkeep",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "headers": _HEADERS,
            "schemas": {**dict(sorted(components.items())), "Error": _ERROR, "InferenceError": _INFERENCE_ERROR},
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
            **{str(status): _refusal(status, inference=_is_inference(endpoint)) for status in _refusals(endpoint)},
        },
        "x-action": str(endpoint.guard) if isinstance(endpoint.guard, Action) else f"none: {endpoint.guard.reason}",
    }
    if isinstance(endpoint.guard, Public):
        operation["security"] = []
    if endpoint.body is bytes:
        content: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
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
    414: "the path and query are too long",
    415: "the body has a Content-Encoding",
    422: "well-formed, but refused for what it says",
    429: "too many calls; `Retry-After` says when to try again",
    431: "the headers are too many or too long",
    500: "the platform could not do it",
    503: "a part is down or starting; try again later",
    504: "it took longer than the caller waits",
}


def _refusals(endpoint: Endpoint) -> list[int]:
    """Return every status with which the endpoint can refuse."""
    found = {400, 431, 500, 503, *endpoint.refuses}
    if not isinstance(endpoint.guard, Public):
        found |= {401, 429}
    if isinstance(endpoint.guard, Action):
        found.add(403)
    if endpoint.query:
        found.add(414)
    if _PARAMETER.search(endpoint.path):
        found |= {404, 414, 422}
    if endpoint.body is not None:
        found |= {404, 408, 413, 415, 422}
    if endpoint.method != "GET":
        found.add(409)
    return sorted(found)


def _is_inference(endpoint: Endpoint) -> bool:
    """Return whether the Open Inference Protocol says how errors look."""
    return endpoint.path.startswith("/v2")


def _refusal(status: int, *, inference: bool) -> dict[str, Any]:
    more = {401: ["WWW-Authenticate"], 429: ["Retry-After"]}.get(status, [])
    schema = "InferenceError" if inference else "Error"
    return {
        "description": _WHY[status],
        "headers": _headers(*more, *(["X-Error-Code"] if inference else [])),
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _headers(*more: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *more)}


def _success(endpoint: Endpoint, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if endpoint.media_type == "application/octet-stream":
        binary = {"schema": {"type": "string", "format": "binary"}}
        headers = _headers("Content-Digest")
        return {"description": "done", "headers": headers, "content": {endpoint.media_type: binary}}
    done: dict[str, Any] = {"description": "done", "headers": _headers()}
    if endpoint.media_type != "application/json":
        return {**done, "content": {endpoint.media_type: {"schema": {"type": "string"}}}}
    if endpoint.returns is None:
        return done
    return {**done, "content": {"application/json": {"schema": _schema(endpoint.returns, by_type)}}}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found = [_parameter("path", name, _path(endpoint, name), required=True) for name in _named(endpoint)]
    found += [_parameter("query", name, _QUERY[name], required=name in _REQUIRED) for name in endpoint.query]
    if endpoint.method == "POST" and not isinstance(endpoint.guard, Public) and not _is_inference(endpoint):
        key = {
            "type": "string",
            "pattern": "^[!-~]{8,128}$",
            "description": "a request repeated with the same key has the first one's answer and no second effect",
        }
        found.append(_parameter("header", "Idempotency-Key", key, required=False))
    if endpoint.body is bytes:
        digest = {"type": "string", "pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$", "description": "RFC 9530"}
        found.append(_parameter("header", "Content-Digest", digest, required=True))
    return found


def _named(endpoint: Endpoint) -> list[str]:
    return _PARAMETER.findall(endpoint.path)


def _path(endpoint: Endpoint, name: str) -> dict[str, Any]:
    if name == "version" and endpoint.path.startswith("/v1/policies/"):
        return {**_DECIMAL, "description": "a policy version's number"}
    return _PATH[name]


def _parameter(where: str, name: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    text = {key: value for key, value in schema.items() if key != "description"}
    parameter: dict[str, Any] = {"name": name, "in": where, "required": required, "schema": text}
    if "description" in schema:
        parameter["description"] = schema["description"]
    return parameter
