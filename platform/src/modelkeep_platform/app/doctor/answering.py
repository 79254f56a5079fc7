"""Whether what answers at `base_url` is this installation: its address, its issuer, the issuer's keys."""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from modelkeep_platform.app.doctor.findings import Finding, Level
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.identity.keyring import ISSUER_KEYS, Keyring
from modelkeep_platform.keys.platform_secrets import PlatformSecrets
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.keys.service import KeyService
from modelkeep_platform.telemetry.system import SystemClock, SystemEntropy

_HTTP_S: Final = 3.0
_MOST_BYTES: Final = 65_536
_APART_S: Final = 60
_FOR_EVER_S: Final = 2**40


def address(data: Path, settings: Settings) -> Iterator[Finding]:
    """Ask who answers where clients ask."""
    base = settings.base_url
    try:
        metadata, date = _read(f"{base}/.well-known/oauth-protected-resource")
    except urllib.error.HTTPError as exc:
        advice = "something else answers at `base_url`; look at the proxy"
        yield Finding(level=Level.BAD, what=f"{base} answers {exc.code}", advice=advice)
    except (OSError, ValueError) as exc:
        # What went wrong below urllib is the reason of its own error.
        if isinstance(getattr(exc, "reason", exc), ssl.SSLError):
            advice = "renew the certificate, or give clients its authority"
            yield Finding(level=Level.BAD, what=f"the certificate of {base} does not verify", advice=advice)
        else:
            advice = "start the server, or look at DNS, firewall and proxy"
            yield Finding(level=Level.WARN, what=f"nothing answers at {base}", advice=advice)
    else:
        if metadata.get("resource") != base:
            advice = "`base_url` names another installation; set it to this one's address"
            yield Finding(level=Level.BAD, what=f"another platform answers at {base}", advice=advice)
            return
        yield from _apart(base, date)
        yield from _issuer(data, settings)


def _apart(base: str, date: str | None) -> Iterator[Finding]:
    """Say when the answer is of another time than this machine's: a proxy on another one stamps it."""
    try:
        apart = 0.0 if date is None else parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return
    if abs(apart) > _APART_S:
        side = "behind" if apart > 0 else "ahead of"
        yield Finding(
            level=Level.WARN,
            what=f"the clock stands {abs(int(apart))} s {side} the one of what answers at {base}",
            advice="set the clocks of this machine and of the proxy (chrony or systemd-timesyncd)",
        )


def _issuer(data: Path, settings: Settings) -> Iterator[Finding]:
    look = "look at the proxy: `/issuer` must reach the same server as everything else"
    try:
        said, _ = _read(f"{settings.issuer}/.well-known/openid-configuration")
        served, _ = _read(f"{settings.issuer}/jwks")
    except (OSError, ValueError) as exc:
        how = f"answers {exc.code}" if isinstance(exc, urllib.error.HTTPError) else "does not answer"
        yield Finding(level=Level.BAD, what=f"the issuer {settings.issuer} {how}", advice=look)
        return
    if said.get("issuer") != settings.issuer or said.get("jwks_uri") != f"{settings.issuer}/jwks":
        yield Finding(level=Level.BAD, what=f"what answers at {settings.issuer} is another issuer", advice=look)
        return
    # Read after what is served: whoever serves a key has kept it before.
    newest, own = _own_keys(data, settings)
    theirs = _points(served)
    if newest in theirs and theirs <= own:
        what = f"{settings.base_url} answers as this platform, and its issuer's keys are this one's"
        yield Finding(level=Level.OK, what=what)
    else:
        yield Finding(
            level=Level.BAD,
            what=f"another platform answers at {settings.base_url}: its issuer's keys are not this one's",
            advice="look which server listens there, and with which data folder; if the issuer's key was rotated just "
            "now, look again",
        )


_Point = tuple[str, str, str]


def _own_keys(data: Path, settings: Settings) -> tuple[_Point | None, frozenset[_Point]]:
    """Return the key that signs here, and every one that is kept."""
    database = open_database(data)
    try:
        clock = SystemClock()
        root = FileRootKey.load(Path(settings.root_key), data=data)
        keys = KeyService(database=database, root=root, clock=clock, entropy=SystemEntropy())
        secrets = PlatformSecrets(database=database, sealer=keys, clock=clock)
        if secrets.get(ISSUER_KEYS) is None:
            return None, frozenset()  # nothing of this installation ever served; asking the keyring would make a key
        kept = Keyring(secret_store=secrets, clock=clock, retired_s=_FOR_EVER_S).jwks()
        return _point(kept["keys"][0]), _points(kept)
    finally:
        database.close()


def _points(keys: Mapping[str, Any]) -> frozenset[_Point]:
    listed = keys.get("keys")
    return (
        frozenset(_point(key) for key in listed if isinstance(key, dict)) if isinstance(listed, list) else frozenset()
    )


def _point(key: Mapping[str, Any]) -> _Point:
    return (str(key.get("kid")), str(key.get("x")), str(key.get("y")))


def _read(url: str) -> tuple[dict[str, Any], str | None]:
    with urllib.request.urlopen(url, timeout=_HTTP_S) as answer:  # noqa: S310 -- checked: http(s) to our own address
        try:
            body = json.loads(answer.read(_MOST_BYTES))
        except ValueError:
            body = None
        return body if isinstance(body, dict) else {}, answer.headers.get("date")
