"""The embedded issuer over HTTP: discovery, keys, tokens, and the two small pages people see.

Pages are plain HTML forms without scripts, cannot be framed, and accept a POST only from their own origin. Nothing
here redirects. OAuth errors have the form of RFC 6749; their status is 400 or 401, or that of a platform's error.
"""

import base64
import binascii
import hashlib
import hmac
import html
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from modelkeep_platform.core.errors import CallerError, ModelkeepError, RateLimitedError
from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.core.sources import subscriber
from modelkeep_platform.http.answers import announced
from modelkeep_platform.http.bodies import read_body
from modelkeep_platform.http.status import status_of
from modelkeep_platform.http.watch import CODE
from modelkeep_platform.identity.issuer import EmbeddedIssuer, OAuthError, TokenAnswer
from modelkeep_platform.tenants.service import TenantService

_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_FORM_BYTES: Final = 16 * 1024
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_PAGE_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "x-frame-options": "DENY",
    # Not `no-referrer`: under it browsers send `Origin: null` with the form (Fetch standard, "append a request Origin
    # header"), and the check of the origin would refuse them. To other origins nothing is sent either way.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem;color:#1d2733}"
    "label{display:block;margin-top:1rem}input{width:100%;padding:.5rem;font:inherit;box-sizing:border-box}"
    "button{margin-top:1.5rem;padding:.6rem 1.2rem;font:inherit}.wrong{color:#a11}"
)
_CSRF_COOKIE: Final = "modelkeep_form"


def issuer_routes(
    *,
    issuer: EmbeddedIssuer,
    tenants: TenantService,
    base_url: str,
    entropy: Entropy,
    unacknowledged: Callable[[], Sequence[str]] = tuple,
) -> list[BaseRoute]:
    """Return the routes under `/issuer`.

    Args:
        issuer: what they speak for.
        tenants: enrols people.
        base_url: where the platform is reached; forms are taken from there alone.
        entropy: makes forms' secrets.
        unacknowledged: names the server processes that had not seen this thread's change in time.
    """
    site = _Site(issuer, tenants, base_url, entropy, unacknowledged)
    return [
        Route("/issuer/.well-known/openid-configuration", site.discovery, methods=["GET"]),
        Route("/issuer/jwks", site.jwks, methods=["GET"]),
        Route("/issuer/token", site.token, methods=["POST"]),
        Route("/issuer/device_authorization", site.device_authorization, methods=["POST"]),
        Route("/issuer/revoke", site.revoke, methods=["POST"]),
        Route("/issuer/device", site.device, methods=["GET", "POST"]),
        Route("/issuer/enrol", site.enrol, methods=["GET", "POST"]),
    ]


class _Site:
    def __init__(
        self,
        issuer: EmbeddedIssuer,
        tenants: TenantService,
        base_url: str,
        entropy: Entropy,
        unacknowledged: Callable[[], Sequence[str]],
    ) -> None:
        self._issuer = issuer
        self._tenants = tenants
        self._base_url = base_url
        self._entropy = entropy
        self._unacknowledged = unacknowledged
        self._origin = _origin(base_url)
        self._style_hash = base64.b64encode(_sha256(_STYLE.encode())).decode("ascii")

    async def discovery(self, _request: Request) -> Response:
        base = self._issuer.issuer
        return _json(
            {
                "issuer": base,
                "jwks_uri": f"{base}/jwks",
                "token_endpoint": f"{base}/token",
                "device_authorization_endpoint": f"{base}/device_authorization",
                "revocation_endpoint": f"{base}/revoke",
                "grant_types_supported": ["client_credentials", _DEVICE_GRANT, "refresh_token"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
                "scopes_supported": ["modelkeep", "organization"],
                "subject_types_supported": ["public"],
                "response_types_supported": [],
                "id_token_signing_alg_values_supported": ["ES256"],
            }
        )

    async def jwks(self, _request: Request) -> Response:
        return _json(dict(await run_in_threadpool(self._issuer.jwks)))

    async def token(self, request: Request) -> Response:
        return await self._oauth(request, self._token)

    def _token(self, request: Request, form: dict[str, str]) -> dict[str, object]:
        grant = form.get("grant_type")
        client_id, secret = _client(request, form)
        answer: TokenAnswer
        if grant == "client_credentials":
            answer = self._issuer.client_credentials(client_id, secret, source=_source(request))
        elif grant == _DEVICE_GRANT:
            answer = self._issuer.redeem_device(form.get("device_code", ""), client_id)
        elif grant == "refresh_token":
            answer = self._issuer.refresh(form.get("refresh_token", ""), client_id)
        else:
            raise OAuthError("this grant type is not supported", code="unsupported_grant_type")
        return {name: value for name, value in asdict(answer).items() if value is not None}

    async def device_authorization(self, request: Request) -> Response:
        return await self._oauth(request, self._device_authorization)

    def _device_authorization(self, request: Request, form: dict[str, str]) -> dict[str, object]:
        client_id, _ = _client(request, form)
        begun = self._issuer.authorize_device(client_id, form.get("scope", ""), source=_source(request))
        page = f"{self._base_url}/issuer/device"
        return {
            **asdict(begun),
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={begun.user_code}",
        }

    async def revoke(self, request: Request) -> Response:
        def run(_request: Request, form: dict[str, str]) -> dict[str, object]:
            self._issuer.revoke(form.get("token", ""))
            return {}

        return await self._oauth(request, run)

    async def device(self, request: Request) -> Response:
        if request.method != "POST":
            return self._device_page(request.query_params.get("user_code", ""))
        return await self._posted(request, self._approve)

    def _approve(self, request: Request, form: dict[str, str]) -> Response:
        code = form.get("user_code", "")
        try:
            self._issuer.approve_device(
                code, form.get("username", ""), form.get("password", ""), source=_source(request)
            )
        except ModelkeepError as exc:
            return self._device_page(code, wrong=exc)
        return self._page("Signed in", "<p>The device is signed in. You can close this page.</p>")

    def _device_page(self, user_code: str, wrong: ModelkeepError | None = None) -> Response:
        return self._form(
            "Sign in a device",
            "Enter the code that the device shows, and your name and password. "
            "Enter a code only if you started the login yourself.",
            [
                ("user_code", "Code", "text", user_code),
                ("username", "Name", "text", ""),
                ("password", "Password", "password", ""),
            ],
            "Sign in",
            wrong,
        )

    async def enrol(self, request: Request) -> Response:
        if request.method != "POST":
            return self._enrol_page(request.query_params.get("token", ""))
        return await self._posted(request, self._enrolled)

    def _enrolled(self, _request: Request, form: dict[str, str]) -> Response:
        token = form.get("token", "")
        try:
            enrolled = self._tenants.enrol(token, form.get("username", ""), form.get("password", ""))
        except ModelkeepError as exc:
            return self._enrol_page(token, wrong=exc)
        who = f"{html.escape(enrolled.name)} of {html.escape(enrolled.tenant.slug)}"
        return self._page("Enrolled", f"<p>You are {who}. Sign in with <code>modelkeep login</code>.</p>")

    def _enrol_page(self, token: str, wrong: ModelkeepError | None = None) -> Response:
        return self._form(
            "Enrol",
            "Choose your name and a password of at least 12 characters. This link works once.",
            [
                ("token", "", "hidden", token),
                ("username", "Name", "text", ""),
                ("password", "Password", "password", ""),
            ],
            "Enrol",
            wrong,
        )

    async def _posted(self, request: Request, run: Callable[[Request, dict[str, str]], Response]) -> Response:
        try:
            form = await _form_of(request)
        except ModelkeepError as exc:
            return self._page("Refused", f"<p>{html.escape(exc.message)}</p>", status=status_of(exc))
        cookie = request.cookies.get(_CSRF_COOKIE, "")
        same_origin = request.headers.get("origin") == self._origin
        if not same_origin or not cookie or not hmac.compare_digest(cookie.encode(), form.get("csrf", "").encode()):
            return self._page("Refused", "<p>This form was not sent from its own page. Open it again.</p>", status=403)
        return await self._in_a_thread(lambda: run(request, form))

    async def _oauth(self, request: Request, run: Callable[[Request, dict[str, str]], dict[str, object]]) -> Response:
        try:
            form = await _form_of(request)
            return await self._in_a_thread(lambda: _json(run(request, form)))
        except ModelkeepError as exc:
            request.scope[CODE] = exc.error_code
            return _oauth_error(exc)

    async def _in_a_thread(self, work: Callable[[], Response]) -> Response:
        return await run_in_threadpool(announced, work, self._unacknowledged)

    def _form(
        self,
        title: str,
        text: str,
        fields: list[tuple[str, str, str, str]],
        button: str,
        wrong: ModelkeepError | None,
    ) -> Response:
        csrf = self._entropy.random_bytes(24).hex()
        rows = [f'<input type="hidden" name="csrf" value="{csrf}">']
        for name, label, kind, value in fields:
            control = f'<input type="{kind}" name="{name}" value="{html.escape(value, quote=True)}" autocomplete="off"'
            rows.append(f"{control}>" if kind == "hidden" else f"<label>{label}{control} required></label>")
        message = "" if wrong is None else f'<p class="wrong" role="alert">{html.escape(wrong.message)}</p>'
        body = f'<p>{text}</p>{message}<form method="post">{"".join(rows)}<button>{button}</button></form>'
        response = self._page(title, body, status=200 if wrong is None else max(400, status_of(wrong)))
        response.set_cookie(
            _CSRF_COOKIE,
            csrf,
            max_age=900,
            path="/issuer",
            httponly=True,
            samesite="strict",
            secure=self._base_url.startswith("https://"),
        )
        if isinstance(wrong, RateLimitedError):
            response.headers["retry-after"] = str(wrong.retry_after_s)
        return response

    def _page(self, title: str, body: str, *, status: int = 200) -> Response:
        document = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} · Modelkeep</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
            f"<body><h1>{title}</h1>{body}</body></html>"
        )
        headers = {name: value.replace("{style}", self._style_hash) for name, value in _PAGE_HEADERS.items()}
        return HTMLResponse(document, status_code=status, headers=headers)


def _oauth_error(error: ModelkeepError) -> Response:
    """Return an error as RFC 6749 (section 5.2) writes it."""
    said: dict[str, object] = {"error_description": error.message}
    if isinstance(error, RateLimitedError):
        return _json({"error": "slow_down", **said}, status=429, headers={"retry-after": str(error.retry_after_s)})
    if isinstance(error, OAuthError):
        headers = {"www-authenticate": 'Basic realm="modelkeep"'} if error.error_code == "invalid_client" else {}
        return _json({"error": error.error_code, **said}, status=401 if headers else 400, headers=headers)
    code = "invalid_request" if isinstance(error, CallerError) else "temporarily_unavailable"
    return _json({"error": code, **said}, status=status_of(error))


async def _form_of(request: Request) -> dict[str, str]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM_TYPE:
        raise OAuthError(f"send the body as `{_FORM_TYPE}`")
    raw = await read_body(request.headers.raw, request.receive, limit_bytes=_FORM_BYTES)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict", max_num_fields=20
        )
    except (UnicodeDecodeError, ValueError) as exc:
        raise OAuthError("the body is not a form") from exc
    form = dict(pairs)
    if len(form) != len(pairs):
        raise OAuthError("a field of the form occurs twice")
    return form


def _client(request: Request, form: dict[str, str]) -> tuple[str, str]:
    header = request.headers.get("authorization", "")
    if not header.lower().startswith("basic "):
        return form.get("client_id", ""), form.get("client_secret", "")
    if "client_secret" in form:
        raise OAuthError("the client authenticates in two ways; use one")  # RFC 6749, section 2.3
    try:
        name, _, secret = base64.b64decode(header[6:], validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise OAuthError("the Authorization header is not Basic", code="invalid_client") from exc
    name, secret = unquote_plus(name), unquote_plus(secret)
    if form.get("client_id", name) != name:
        raise OAuthError("the client's id differs between header and form")
    return name, secret


def _source(request: Request) -> str:
    return subscriber(request.client.host if request.client else "")


def _origin(base_url: str) -> str:
    """Return the origin as browsers write it: host in lower case, no default port (RFC 6454, section 6.2)."""
    parts = urlsplit(base_url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"https": 443, "http": 80}.get(parts.scheme)
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _json(value: dict[str, object], *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    kept = {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})}
    return JSONResponse(value, status_code=status, headers=kept)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
