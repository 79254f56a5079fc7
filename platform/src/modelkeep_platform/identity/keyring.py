"""The embedded issuer's signing keys: ES256, kept sealed, replaced without breaking tokens that are still good.

The newest key signs. A retired one stays in the key set until the last token it signed is over, and not a second
longer, so that a key that leaked after its time signs nothing that is believed.
"""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from joserfc import jws
from joserfc.jwk import ECKey

from modelkeep_platform.core.ports import Clock
from modelkeep_platform.core.secrets import SecretBytes

ISSUER_KEYS: Final = "issuer-keys"


class SecretStore(Protocol):
    """Keeps the signing keys sealed."""

    def get_or_create(self, name: str, make: Callable[[], bytes]) -> SecretBytes:
        """Return the secret, making it first when there is none; two processes agree on one."""

    def change(self, name: str, change: Callable[[SecretBytes], SecretBytes]) -> SecretBytes:
        """Replace it by what `change` makes of it, with nothing in between; return what is kept now."""


class Keyring:
    """Signs tokens and shows the keys they verify with.

    Args:
        secret_store: keeps the keys sealed.
        clock: retires them.
        retired_s: how long a retired key's tokens may still be good, in seconds.
        epoch: the number that a rotation moves; keys are read anew with it, so that every process follows.
    """

    def __init__(
        self, *, secret_store: SecretStore, clock: Clock, retired_s: int, epoch: Callable[[], int] = lambda: 0
    ) -> None:
        self._epoch = epoch
        self._read_in = -1
        self._secret_store = secret_store
        self._clock = clock
        self._retired_s = retired_s
        self._lock = threading.RLock()
        self._keys: list[dict[str, Any]] = []

    def jwks(self) -> Mapping[str, Any]:
        """Return the public keys as a JWK set, newest first."""
        kept = self._verifying(self._loaded(), self._clock.now_s())
        return {"keys": [ECKey.import_key(key["jwk"]).as_dict(private=False) for key in kept]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return `claims` as a compact token of the newest key."""
        key = ECKey.import_key(self._loaded()[0]["jwk"])
        header = {"alg": "ES256", "typ": "JWT", "kid": key.kid}
        return jws.serialize_compact(header, json.dumps(claims).encode(), key, algorithms=["ES256"])

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        now, made = self._clock.now_s(), _new_key()

        def add(stored: SecretBytes) -> SecretBytes:
            retired = [{"retired_at": now, **key} for key in self._verifying(json.loads(stored.reveal()), now)]
            return SecretBytes(json.dumps([made, *retired]).encode())

        with self._lock:
            self._loaded()
            # Kept before it is used: a token is never signed with a key that a crash could lose. What is stored now is
            # what it joins: another process may have rotated, too.
            self._keys = json.loads(self._secret_store.change(ISSUER_KEYS, add).reveal())

    def _verifying(self, keys: list[dict[str, Any]], now: int) -> list[dict[str, Any]]:
        return [key for key in keys if "retired_at" not in key or key["retired_at"] + self._retired_s > now]

    def _loaded(self) -> list[dict[str, Any]]:
        with self._lock:
            epoch = self._epoch()
            if not self._keys or epoch != self._read_in:
                stored = self._secret_store.get_or_create(ISSUER_KEYS, lambda: json.dumps([_new_key()]).encode())
                self._keys = json.loads(stored.reveal())
                self._read_in = epoch
            return self._keys


def _new_key() -> dict[str, Any]:
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, private=True, auto_kid=True)
    return {"jwk": key.as_dict(private=True)}
