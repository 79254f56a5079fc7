"""The platform's own secrets, sealed under the platform's key: the checkpoint key, the issuer's keys."""

from collections.abc import Callable

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.ids import PLATFORM, ObjectId
from modelkeep_platform.core.ports import Clock, Sealer, Signer
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.keys import platform_secrets, wrapped_deks
from modelkeep_platform.storage.transactions import System

_OBJECT = ObjectId("platform-secrets")


class PlatformSecrets:
    """Keeps named secrets.

    Args:
        database: where sealed secrets are.
        sealer: seals them for the reserved platform tenant.
        clock: stamps them.
    """

    def __init__(self, *, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock

    def prepare(self) -> None:
        """Make the data key under which secrets are sealed, once."""
        with self._database.tenant(PLATFORM, by=System(reason="prepare platform secrets")) as tx:
            if tx.first(tx.select(wrapped_deks).where(wrapped_deks.c.object_id == _OBJECT)) is None:
                self._sealer.create_key(tx, PLATFORM, _OBJECT)

    def get(self, name: str) -> SecretBytes | None:
        """Return the secret, or None when there is none of that name."""
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(platform_secrets.c.sealed).where(platform_secrets.c.name == name))
        if row is None:
            return None
        return self._open(name, row["sealed"])

    def change(self, name: str, change: Callable[[SecretBytes], SecretBytes]) -> SecretBytes:
        """Replace the secret by what `change` makes of it, with nothing in between; return what is kept now.

        Raises:
            LookupError: there is none of that name.
        """
        with self._database.platform() as tx:
            row = tx.first(sa.select(platform_secrets.c.sealed).where(platform_secrets.c.name == name))
            if row is None:
                raise LookupError(name)
            changed = change(self._open(name, row["sealed"]))
            tx.execute(
                sa.update(platform_secrets)
                .where(platform_secrets.c.name == name)
                .values(sealed=self._seal(name, changed.reveal()), created_at=self._clock.now_s())
            )
        return changed

    def get_or_create(self, name: str, make: Callable[[], bytes]) -> SecretBytes:
        """Return the secret, making it first when there is none; two processes agree on one."""
        found = self.get(name)
        if found is not None:
            return found
        sealed = self._seal(name, make())
        try:
            with self._database.platform() as tx:
                tx.execute(sa.insert(platform_secrets).values(name=name, sealed=sealed, created_at=self._clock.now_s()))
        except DuplicateError:
            pass  # another process was first; its secret is the one
        made = self.get(name)
        if made is None:
            raise RuntimeError("a secret that was just kept is gone")
        return made

    def _seal(self, name: str, secret: bytes) -> bytes:
        return self._sealer.seal(
            PLATFORM, _OBJECT, secret, purpose=Purpose.SIGNING_KEY, version=1, name=name, suite=Suite.SMALL
        )

    def _open(self, name: str, sealed: bytes) -> SecretBytes:
        return SecretBytes(
            self._sealer.open(
                PLATFORM, _OBJECT, sealed, purpose=Purpose.SIGNING_KEY, version=1, name=name, suite=Suite.SMALL
            )
        )


class Ed25519Signer(Signer):
    """Signs checkpoints with a key kept sealed."""

    def __init__(self, secret: SecretBytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret.reveal())
        self._public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @staticmethod
    def generate() -> bytes:
        """Return a new private key's 32 raw bytes."""
        return Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def public_key(self) -> bytes:
        """Return the 32 raw bytes of the public key."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return self._key.sign(message)
