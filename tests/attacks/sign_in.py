"""The issuer's pages behind the gateway that counts strangers, as a browser and as a client program meet them."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette

from fakes.asgi import AsgiClient
from fakes.identity import BASE, PASSWORD, IdentityRoom
from modelkeep_platform.audit.refusal_notes import RefusalNotes
from modelkeep_platform.audit.strangers import STRANGERS
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refusals import Quota
from modelkeep_platform.http.gateway import Gateway
from modelkeep_platform.http.issuer import issuer_routes
from services.evidence import MOVING, rows_of

SDK = "modelkeep-sdk"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass
class Site:
    """The issuer's site as a browser and as a client program meet it."""

    room: IdentityRoom
    http: AsgiClient
    notes: RefusalNotes

    @contextmanager
    def refuses(self, *statuses: int) -> Iterator[None]:
        """Assert that calls are refused with `statuses`, in any order: one count in the log, no row but of guesses."""
        self.notes.sweep(unfinished=True)
        before, recorded = rows_of(self.room.database, moving=MOVING | {"guesses"}), len(self.room.recorder.events)
        yield
        assert rows_of(self.room.database, moving=MOVING | {"guesses"}) == before
        self.notes.sweep(unfinished=True)
        (counted,) = self.room.recorder.events[recorded:]
        assert (counted.tenant, counted.action, counted.outcome) == (PLATFORM, STRANGERS, "denied")
        wanted = {f"status_{status}": statuses.count(status) for status in statuses}
        assert {name: count for name, count in counted.facts.items() if name.startswith("status_")} == wanted
        assert counted.personal == {"source": self.http.address}, "an address is sealed"

    def page(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def send(
        self, path: str, fields: dict[str, str], *, origin: str | None = BASE, csrf: str | None = None
    ) -> httpx.Response:
        """Open the page, fill in its form, send it."""
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', self.page(path).text))
        if csrf is not None:
            hidden["csrf"] = csrf
        headers = {} if origin is None else {"origin": origin}
        return self.http.post(path, data={**hidden, **fields}, headers=headers)

    def begin(self, slug: str = "acme") -> dict[str, str]:
        answer = self.http.post(
            "/issuer/device_authorization", data={"client_id": SDK, "scope": f"organization:{slug}"}
        )
        assert answer.status_code == 200
        return {name: str(value) for name, value in answer.json().items()}

    def sign_in(self, code: str, username: str = "ada", password: str = PASSWORD) -> httpx.Response:
        return self.send("/issuer/device", {"user_code": code, "username": username, "password": password})

    def token(self, **form: str) -> httpx.Response:
        return self.http.post("/issuer/token", data=form)

    def redeem(self, device_code: str) -> httpx.Response:
        return self.token(grant_type=DEVICE_GRANT, device_code=device_code, client_id=SDK)


async def _nothing() -> None: ...


def site_of(room: IdentityRoom, base_url: str) -> Site:
    """Put the pages behind the gateway that counts strangers."""
    routes = issuer_routes(issuer=room.issuer, tenants=room.tenants, base_url=base_url, entropy=room.entropy)
    notes = RefusalNotes(recorder=room.recorder, clock=room.clock, per_window=lambda _: Quota(1, 1))
    pages = Starlette(routes=routes)
    app = Gateway(management=pages, data_plane=pages, entropy=room.entropy, notes=notes, on_shutdown=_nothing)
    return Site(room, AsgiClient(app, base_url=base_url), notes)


def alert(answer: httpx.Response) -> str:
    found = re.search(r'role="alert">([^<]*)<', answer.text)
    return html.unescape(found[1]) if found else ""
