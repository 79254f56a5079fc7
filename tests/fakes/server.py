"""A platform in memory that speaks the wire, for tests of the SDK: through `httpx.MockTransport`, without a network.

Tests make it hostile: `before` sees a request first and may answer it or raise; `after` may change an answer.
"""

import base64
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import httpx

from fakes.log import FakeLog

BASE = "https://models.test"
PART_BYTES = 8
Before = Callable[[httpx.Request], httpx.Response | None]
After = Callable[[httpx.Request, httpx.Response], httpx.Response]


class FakeRefusalError(Exception):
    """Becomes an error envelope."""

    def __init__(self, status: int, code: str, message: str = "refused", details: dict[str, Any] | None = None) -> None:
        self.status, self.code, self.message, self.details = status, code, message, details or {}


class FakePlatform:
    """One tenant's view of a platform with an embedded issuer."""

    def __init__(self, base_url: str = BASE, *, now_s: Callable[[], float]) -> None:
        self.base_url = base_url
        self.now_s = now_s
        self.requests: list[httpx.Request] = []
        self.before: list[Before] = []
        self.after: list[After] = []
        self.secrets = {"app": "s3cret"}
        self.tokens: dict[str, float] = {}
        self.refresh_tokens: dict[str, str] = {}
        self.revoked: list[str] = []
        self.device_answers: list[str] = []
        self.lifetime_s = 300
        self.models: dict[str, dict[str, Any]] = {}
        self.datasets: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.keys: dict[str, tuple[bytes, httpx.Response]] = {}
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.log = FakeLog()
        self._count = 0

    # --- transport --------------------------------------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        """Return a transport for either client, whose answers arrive as a stream."""
        return httpx.MockTransport(lambda request: streamed(self.handle(request)))

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.requests.append(request)
        for hook in list(self.before):
            answer = hook(request)
            if answer is not None:
                return answer
        try:
            answer = self._answer(request)
        except FakeRefusalError as exc:
            answer = refusal(exc.status, exc.code, exc.message, exc.details)
        for change in self.after:
            answer = change(request, answer)
        return answer

    def sent(self, method: str, path: str) -> list[httpx.Request]:
        """Return the requests of one kind that arrived."""
        return [request for request in self.requests if (request.method, request.url.path) == (method, path)]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/.well-known/oauth-protected-resource":
            return answer_json({"resource": self.base_url, "authorization_servers": [f"{self.base_url}/issuer"]})
        if path.startswith("/issuer/"):
            return self._issuer(request, path.removeprefix("/issuer"))
        if path == "/v1/enrolments":
            return self._enrol(request)
        self._authenticate(request)
        key = request.headers.get("idempotency-key")
        if key is not None and key in self.keys:
            body, kept = self.keys[key]
            if body != request.content:
                raise FakeRefusalError(409, "idempotency_mismatch")
            return kept
        answer = self._route(request, request.url.raw_path.decode().partition("?")[0].split("/")[1:])
        if key is not None:
            self.keys[key] = (request.content, answer)
        return answer

    # --- issuer -----------------------------------------------------------------------------------

    def issue(self, *, renewable: bool) -> dict[str, Any]:
        """Return a token answer."""
        self._count += 1
        access = f"access-{self._count}"
        self.tokens[access] = self.now_s() + self.lifetime_s
        answer: dict[str, Any] = {"access_token": access, "token_type": "Bearer", "expires_in": self.lifetime_s}
        if renewable:
            answer["refresh_token"] = f"refresh-{self._count}"
            self.refresh_tokens[answer["refresh_token"]] = "fresh"
        return answer

    def _issuer(self, request: httpx.Request, path: str) -> httpx.Response:
        base = f"{self.base_url}/issuer"
        if path == "/.well-known/openid-configuration":
            return answer_json(
                {
                    "issuer": base,
                    "token_endpoint": f"{base}/token",
                    "device_authorization_endpoint": f"{base}/device_authorization",
                    "revocation_endpoint": f"{base}/revoke",
                }
            )
        form = dict(parse_qsl(request.content.decode()))
        if path == "/device_authorization":
            return answer_json(
                {
                    "device_code": "device-1",
                    "user_code": "BCDF-GHJK",
                    "verification_uri": f"{base}/device",
                    "verification_uri_complete": f"{base}/device?user_code=BCDF-GHJK",
                    "expires_in": 600,
                    "interval": 1,
                }
            )
        if path == "/revoke":
            self.revoked.append(form["token"])
            return answer_json({})
        return self._token(request, form)

    def _token(self, request: httpx.Request, form: dict[str, str]) -> httpx.Response:
        grant = form["grant_type"]
        if grant == "client_credentials":
            scheme, _, encoded = request.headers["authorization"].partition(" ")
            assert scheme == "Basic"
            client_id, _, secret = base64.b64decode(encoded).decode().partition(":")
            if self.secrets.get(client_id) != secret:
                return oauth_error(401, "invalid_client", "the client id or secret is wrong")
            return answer_json(self.issue(renewable=False))
        if grant == "refresh_token":
            if self.refresh_tokens.get(form["refresh_token"]) != "fresh":
                self.refresh_tokens.clear()
                return oauth_error(400, "invalid_grant", "the refresh token is over; log in again")
            self.refresh_tokens[form["refresh_token"]] = "used"
            return answer_json(self.issue(renewable=True))
        waiting = self.device_answers.pop(0) if self.device_answers else ""
        return oauth_error(400, waiting, waiting) if waiting else answer_json(self.issue(renewable=True))

    def _authenticate(self, request: httpx.Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or self.tokens.get(token, 0) <= self.now_s():
            raise FakeRefusalError(401, "unauthenticated", "log in first")

    def _enrol(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if body["token"] != "link-1":
            raise FakeRefusalError(404, "not_found", "there is no such object, or you may not see it")
        tenant = {"id": "t-1", "slug": "acme", "name": "Acme"}
        enrolled = {"tenant": tenant, "principal": "p-1", "name": body["username"], "roles": ["tenant-admin"]}
        return answer_json(enrolled, status=201)

    # --- resources --------------------------------------------------------------------------------

    def _route(self, request: httpx.Request, parts: list[str]) -> httpx.Response:  # noqa: PLR0912
        body = json.loads(request.content) if request.headers.get("content-type") == "application/json" else {}
        match (request.method, *parts):
            case ("GET", "v1", "whoami"):
                tenant = {"id": "t-1", "slug": "acme", "name": "Acme"}
                who = {"kind": "tenant", "tenant": tenant, "principal": "p-1", "name": "app", "roles": ["developer"]}
                return answer_json(who)
            case ("POST", "v1", "models", name, "versions"):
                return self._new_version(name, body)
            case ("GET", "v1", "models", name):
                return answer_json(self._model(name)["model"])
            case ("PUT", "v1", "models", name, "aliases", alias):
                self._model(name)["model"]["aliases"][alias] = body["version"]
                return answer_json(self._model(name)["model"])
            case ("GET", "v1", "models", name, "versions", version):
                return answer_json(self._version(name, version)["shown"])
            case ("GET", "v1", "models", name, "versions", version, "graph"):
                return httpx.Response(
                    200, content=self._version(name, version)["graph"], headers={"content-type": "application/json"}
                )
            case ("GET", "v1", "models", name, "versions", version, "weights"):
                return httpx.Response(
                    200,
                    content=self._version(name, version)["weights"],
                    headers={"content-type": "application/octet-stream"},
                )
            case ("POST", "v1", "datasets"):
                return self._new_dataset(body)
            case (_, "v1", "uploads", upload_id, *rest):
                return self._upload(request, upload_id, rest)
            case ("GET", "v1", "jobs", job_id):
                states = self.jobs[job_id]
                return answer_json(states.pop(0) if len(states) > 1 else states[0])
            case ("GET", "v2", "models", name, *_):
                return answer_json({**self._model(name)["metadata"], "name": name})
            case ("POST", "v2", "models", name, *at, "infer"):
                return self._infer(name, at[-1] if at and at[-1].isdigit() else "1", body)
            case ("GET", "v1", "audit", *rest):
                return self._audit(request, rest)
            case ("GET", "v1", name) if name in self.lists:
                return self._list(request, self.lists[name])
            case ("DELETE", *_):
                return httpx.Response(204)
        raise FakeRefusalError(404, "no_such_path", "there is no such path; the reference lists them")

    def _list(self, request: httpx.Request, items: list[dict[str, Any]]) -> httpx.Response:
        limit = min(int(request.url.params.get("limit", "50")), 3)
        start = int(request.url.params.get("cursor", "0"))
        end = start + limit
        return answer_json({"items": items[start:end], "next_cursor": str(end) if end < len(items) else None})

    def add_model(
        self, name: str, *, graph: bytes = b'{"format":"modelkeep.graph/1"}', weights: bytes = b"w" * 20
    ) -> None:
        """Put a model with one version there."""
        model = self.models.setdefault(name, new_model(name))
        number = len(model["versions"]) + 1
        shown = new_version(name, number, graph, weights)
        model["versions"][number] = {"shown": shown, "graph": graph, "weights": weights}
        model["model"]["latest_version"] = number

    def _model(self, name: str) -> dict[str, Any]:
        if name not in self.models:
            raise FakeRefusalError(404, "not_found", "there is no such object, or you may not see it")
        return self.models[name]

    def _version(self, name: str, version: str) -> dict[str, Any]:
        model = self._model(name)
        number = int(version) if version.isdigit() else model["model"]["aliases"].get(version, 0)
        if number not in model["versions"]:
            raise FakeRefusalError(404, "not_found", "there is no such object, or you may not see it")
        found: dict[str, Any] = model["versions"][number]
        return found

    def _new_version(self, name: str, body: dict[str, Any]) -> httpx.Response:
        number = len(self.models.get(name, {"versions": {}})["versions"]) + 1
        upload = self._begin(
            "model", body["weights_bytes"], body["weights_sha256"], object_id=f"m-{name}", version=number
        )
        upload["done"] = lambda data: self._finish_model(name, body, data)
        return answer_json({"model_id": f"m-{name}", "version": number, "upload": shown_upload(upload)}, status=201)

    def _finish_model(self, name: str, body: dict[str, Any], data: bytes) -> dict[str, Any]:
        self.add_model(name, graph=json.dumps(body["graph"]).encode(), weights=data)
        model = self.models[name]
        shown: dict[str, Any] = model["versions"][model["model"]["latest_version"]]["shown"]
        return shown

    def _new_dataset(self, body: dict[str, Any]) -> httpx.Response:
        upload = self._begin("dataset", body["size_bytes"], body["sha256"], object_id="d-1", version=1)
        dataset = {key: body[key] for key in ("name", "description", "format", "schema", "privacy")}
        dataset |= {"id": "d-1", "state": "ready", "created_at": 1}

        def done(data: bytes) -> dict[str, Any]:
            self.datasets[body["name"]] = {"shown": dataset, "data": data}
            return dataset

        upload["done"] = done
        return answer_json({"dataset_id": "d-1", "name": body["name"], "upload": shown_upload(upload)}, status=201)

    def _begin(self, kind: str, size: int, sha256: str, *, object_id: str, version: int) -> dict[str, Any]:
        upload = {
            "id": f"up-{len(self.uploads) + 1}",
            "kind": kind,
            "object_id": object_id,
            "version": version,
            "size_bytes": size,
            "sha256": sha256,
            "part_bytes": PART_BYTES,
            "parts": math.ceil(size / PART_BYTES),
            "state": "open",
            "expires_at": 9,
            "data": {},
        }
        self.uploads[str(upload["id"])] = upload
        return upload

    def _upload(self, request: httpx.Request, upload_id: str, rest: list[str]) -> httpx.Response:
        if upload_id not in self.uploads:
            raise FakeRefusalError(404, "not_found", "there is no such object, or you may not see it")
        upload = self.uploads[upload_id]
        if request.method == "PUT":
            digest = base64.b64encode(hashlib.sha256(request.content).digest()).decode()
            if request.headers["content-digest"] != f"sha-256=:{digest}:":
                raise FakeRefusalError(422, "digest_mismatch")
            upload["data"][int(rest[1])] = request.content
            return answer_json({"number": int(rest[1]), "received": len(upload["data"])})
        if request.method == "DELETE":
            del self.uploads[upload_id]
            return httpx.Response(204)
        if rest == ["complete"]:
            whole = b"".join(upload["data"][number] for number in range(upload["parts"]))
            assert hashlib.sha256(whole).hexdigest() == upload["sha256"]
            return answer_json(upload["done"](whole))
        return answer_json(shown_upload(upload))

    def _infer(self, name: str, version: str, body: dict[str, Any]) -> httpx.Response:
        self._model(name)
        first = body["inputs"][0]
        doubled = [2 * value for value in first["data"]]
        outputs = [{"name": "output", "datatype": first["datatype"], "shape": first["shape"], "data": doubled}]
        return answer_json({"model_name": name, "model_version": version, "id": body["id"], "outputs": outputs})

    def _audit(self, request: httpx.Request, rest: list[str]) -> httpx.Response:
        query = request.url.params
        match rest:
            case ["key"]:
                return answer_json(self.log.key())
            case ["checkpoint"]:
                return httpx.Response(200, text=self.log.checkpoint())
            case ["consistency"]:
                return answer_json(self.log.consistency(int(query["old"]), int(query["new"])))
            case ["entries", index, "proof"]:
                return answer_json(self.log.proof(int(index), int(query["size"])))
        entries = [entry for entry in self.log.entries() if query.get("request_id") in (None, entry["request_id"])]
        return self._list(request, entries)


def new_model(name: str) -> dict[str, Any]:
    """Return an empty model with metadata of one input of ten columns."""
    shown = {
        "id": f"m-{name}",
        "name": name,
        "description": "",
        "created_at": 1,
        "aliases": {},
        "latest_version": None,
        "owner": "acme",
    }
    tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    return {"model": shown, "versions": {}, "metadata": {"platform": "p", "versions": ["1"], "inputs": tensors}}


def new_version(name: str, number: int, graph: bytes, weights: bytes) -> dict[str, Any]:
    """Return a version as the wire shows it."""
    return {
        "model_id": f"m-{name}",
        "name": name,
        "version": number,
        "state": "ready",
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "weights_bytes": len(weights),
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 3]}],
        "outputs": [{"name": "output", "dtype": "float32", "shape": [-1, 3]}],
        "provenance": {"source": "upload"},
        "created_at": 1,
        "created_by": "p-1",
    }


def new_job(state: str, *, step: int = 0, job_id: str = "j-1", error: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a job as the wire shows it."""
    return {
        "id": job_id,
        "name": "tumour",
        "state": state,
        "dataset": "rows",
        "into": "tumour",
        "created_at": 1,
        "started_at": None,
        "finished_at": None,
        "progress": {"step": step, "steps": 10, "epsilon_charged": 0.5},
        "error": error,
        "result": None,
        "created_by": "p-1",
    }


def shown_upload(upload: dict[str, Any]) -> dict[str, Any]:
    """Return an upload as the wire shows it."""
    shown = {key: value for key, value in upload.items() if key not in {"data", "done"}}
    return {**shown, "received": sorted(upload["data"])}


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Bytes that arrive in pieces."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def streamed(answer: httpx.Response) -> httpx.Response:
    """Return `answer` as the network gives it: not read yet."""
    if isinstance(answer.stream, Chunks):
        return answer
    data = answer.content
    pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    return httpx.Response(answer.status_code, headers=answer.headers, stream=Chunks(pieces))


def answer_json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return a JSON answer."""
    return httpx.Response(
        status,
        content=json.dumps(value).encode(),
        headers={"content-type": "application/json", "x-request-id": "req-1", **(headers or {})},
    )


def refusal(
    status: int,
    code: str,
    message: str = "refused",
    details: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """Return an error envelope of `/v1`."""
    error = {"code": code, "message": message, "request_id": "req-1", "details": details or {}}
    return answer_json({"error": error}, status=status, headers=headers)


def oauth_error(status: int, code: str, text: str) -> httpx.Response:
    """Return an error of RFC 6749."""
    return answer_json({"error": code, "error_description": text}, status=status)
