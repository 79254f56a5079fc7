"""What a root of trust does: it wraps and unwraps tenants' key-encryption keys, and has an id."""

from typing import Protocol

from modelkeep_platform.core.secrets import SecretBytes


class RootKey(Protocol):
    """The platform's root of trust."""

    @property
    def id(self) -> str:
        """Name this root; part of the context of what it wraps."""

    def wrap(self, key: SecretBytes, context: bytes) -> bytes:
        """Return `key` wrapped, bound to `context`."""

    def unwrap(self, wrapped: bytes, context: bytes) -> SecretBytes:
        """Return the key.

        Raises:
            IntegrityError: not wrapped by this root under this context.
        """
