"""An audit log in memory for tests of the SDK, with the server's own tree and signatures; it can be made to lie."""

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep_platform.audit import checkpoint, merkle

ORIGIN = "models.test/log"


class FakeSigner:
    """Signs with a key made from a seed."""

    def __init__(self, seed: bytes = b"k" * 32) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()


class FakeLog:
    """Entries, their tree, and proofs."""

    def __init__(self, signer: FakeSigner | None = None) -> None:
        self.signer = signer or FakeSigner()
        self.origin = ORIGIN
        self._bodies: list[tuple[bytes, bytes]] = []

    def add(self, count: int = 1, *, outcome: str = "done", salt: bytes = b"s" * 32) -> None:
        """Append entries."""
        for _ in range(count):
            number = len(self._bodies)
            body = {
                "v": 1,
                "id": f"log-{number}",
                "time": 100 + number,
                "action": "model:read",
                "outcome": outcome,
                "actor": {"tenant": "t-1", "kind": "user"},
                "resource": None,
                "policies": [],
                "request_id": f"req-{number}",
                "facts": {"n": number},
                "personal": "",
            }
            self._bodies.append((salt, json.dumps(body).encode()))

    def cut(self, size: int) -> None:
        """Forget all entries from `size` on."""
        del self._bodies[size:]

    @property
    def leaves(self) -> list[bytes]:
        return [merkle.leaf_hash(b"\x01" + hashlib.sha256(salt + body).digest()) for salt, body in self._bodies]

    def entries(self) -> list[dict[str, Any]]:
        """Return entries as the wire shows them, newest first."""
        shown = []
        for index, (salt, body) in enumerate(self._bodies):
            logged = json.loads(body)
            shown.append(
                {
                    "id": logged["id"],
                    "index": index,
                    "time": logged["time"],
                    "action": logged["action"],
                    "outcome": logged["outcome"],
                    "actor_tenant": "t-1",
                    "actor_kind": "user",
                    "principal": "p-1",
                    "name": "ana",
                    "kind": None,
                    "object_id": None,
                    "request_id": logged["request_id"],
                    "policies": [],
                    "facts": {**logged["facts"], "username": "opened from the sealed part"},
                    "salt": _b64(salt),
                    "entry": _b64(body),
                    "leaf_hash": _b64(self.leaves[index]),
                }
            )
        return shown[::-1]

    def key(self) -> dict[str, str]:
        public = self.signer.public_key()
        return {"name": self.origin, "algorithm": "Ed25519", "public_key": _b64(public), "key_hash": ""}

    def checkpoint(self, size: int | None = None) -> str:
        """Return the signed checkpoint of the first `size` entries."""
        leaves = self.leaves[:size]
        made = checkpoint.Checkpoint(origin=self.origin, size=len(leaves), root=merkle.root_of(leaves))
        return checkpoint.sign(made, self.signer)

    def proof(self, index: int, size: int) -> dict[str, Any]:
        leaves = self.leaves[:size]
        hashes = merkle.inclusion_path(index, size, lambda level, at: _node(leaves, level, at))
        return {
            "index": index,
            "size": size,
            "leaf_hash": _b64(leaves[index]),
            "hashes": [_b64(value) for value in hashes],
            "checkpoint": self.checkpoint(size),
        }

    def consistency(self, old: int, new: int) -> dict[str, Any]:
        leaves = self.leaves[:new]
        hashes = merkle.consistency_path(old, new, lambda level, at: _node(leaves, level, at))
        return {"old": old, "new": new, "hashes": [_b64(value) for value in hashes], "checkpoint": self.checkpoint(new)}


def _node(leaves: list[bytes], level: int, index: int) -> bytes:
    return merkle.root_of(leaves[index << level : (index + 1) << level])


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
