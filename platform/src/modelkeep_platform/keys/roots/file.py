"""The root key in a file: 0600, outside the data folder, made at `init`.

The file's mode and owner are checked at every start: a key that others can read is refused, since who can copy it
can open everything. The file is the one place where a key lies unsealed.
"""

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final, Self

from modelkeep_platform.core.errors import ConflictError, PlatformError
from modelkeep_platform.core.sealing import Suite
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.sealed import KEY_BYTES, open_sealed, seal
from modelkeep_platform.storage.files import fsync

_HEADER: Final = "modelkeep-root-key-v1 "
_MODE: Final = 0o600
_FILE: Final = re.compile(rb"modelkeep-root-key-v1 (?P<key>[0-9A-Fa-f]{64})\s*")
_MOST_BYTES: Final = 256


class RootKeyError(PlatformError):
    """The root key file is missing, unreadable, or open to others."""

    code = "root_key_unusable"


class FileRootKey:
    """A root key read from a file; implements `RootKey`.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: SecretBytes) -> None:
        self._key = key
        self._id = "file-" + hashlib.sha256(b"modelkeep root id" + key.reveal()).hexdigest()[:16]

    @classmethod
    def create(cls, path: Path, *, data: Path) -> Self:
        """Make a new key file.

        Args:
            path: where; its folder is made with mode 0700.
            data: the data folder, in which it must not lie.

        Raises:
            ConflictError: there is a file already, or it would lie in the data folder.
        """
        _refuse_inside(path, data)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = SecretBytes(os.urandom(KEY_BYTES))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _MODE)
        except FileExistsError as exc:
            raise ConflictError(
                "there is a root key file already; it is never overwritten", code="root_key_exists"
            ) from exc
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{_HEADER}{key.reveal().hex()}\n")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()  # half a key, ours alone: left there, it would stop the next `init`
            raise
        fsync(path.parent)
        return cls(key)

    @classmethod
    def load(cls, path: Path, *, data: Path | None = None) -> Self:
        """Read the key file.

        Args:
            path: where it is.
            data: the data folder, in which it must not lie; None when there is none.

        Raises:
            ConflictError: it lies in the data folder.
            RootKeyError: it is missing, a link, of another owner, open to others, or damaged.
        """
        if data is not None:
            _refuse_inside(path, data)
        try:
            # Not blocking: a pipe in the file's place must be refused, not waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise RootKeyError(
                "the root key file cannot be opened; restore it from its offline copy, as a plain file"
            ) from exc
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise RootKeyError("the root key file is open to others; give it to the server's user and mode 0600")
            found = _FILE.fullmatch(os.read(descriptor, _MOST_BYTES))
        finally:
            os.close(descriptor)
        if found is None:
            raise RootKeyError("the root key file is damaged; restore it from its offline copy")
        return cls(SecretBytes(bytes.fromhex(found["key"].decode("ascii"))))

    @property
    def id(self) -> str:
        """Return a name derived from the key, which does not reveal it."""
        return self._id

    def wrap(self, key: SecretBytes, context: bytes) -> bytes:
        """Return `key` sealed under the root, bound to `context`."""
        return seal(self._key.reveal(), context, key.reveal(), suite=Suite.SMALL)

    def unwrap(self, wrapped: bytes, context: bytes) -> SecretBytes:
        """Return the key; raises SealedError when it was not wrapped by this root under this context."""
        return SecretBytes(open_sealed(self._key.reveal(), context, wrapped))


def _refuse_inside(path: Path, data: Path) -> None:
    if data.resolve() in path.resolve().parents:
        raise ConflictError(
            "the root key must not lie in the data folder: a copy of the folder would hold both",
            code="root_key_inside",
        )
