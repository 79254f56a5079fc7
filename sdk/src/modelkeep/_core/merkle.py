"""The Merkle tree of RFC 6962, section 2.1: hashes, and proofs verified as RFC 9162, sections 2.1.3 and 2.1.4, write.

Pure: bytes in, nothing or an error out. Verification raises; there is no verdict that could be ignored.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from modelkeep.errors import ProofError

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify_inclusion(leaf: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Verify that the hash `leaf` stands at `index` of the tree with `size` leaves and `root`.

    Raises:
        ProofError: it does not show that.
    """
    _check_lengths([leaf, root, *proof])
    # 1. Compare the leaf index with the tree size.
    if not 0 <= index < size:
        raise ProofError("the entry lies outside the log")
    # 2.-3. Climb from the leaf; fn and sn are the node's and the last node's index on each level.
    fn, sn, computed = index, size - 1, leaf
    # 4. For each hash of the proof:
    for sibling in proof:
        if sn == 0:
            raise ProofError("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            computed = node_hash(sibling, computed)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            computed = node_hash(computed, sibling)
        fn, sn = fn >> 1, sn >> 1
    # 5. Compare with the root.
    if sn != 0 or not hmac.compare_digest(computed, root):
        raise ProofError("the inclusion proof does not lead to the log's root")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Verify that the tree of `size1` leaves and `root1` is a prefix of that of `size2` leaves and `root2`.

    Raises:
        ProofError: it is not, or the proof does not show it.
    """
    _check_lengths([root1, root2, *proof])
    if not 0 <= size1 <= size2:
        raise ProofError("the log has become shorter")
    if size1 == size2:
        if proof or not hmac.compare_digest(root1, root2):
            raise ProofError("there are two logs of the same size")
        return
    if size1 == 0:
        if proof or not hmac.compare_digest(root1, EMPTY_ROOT):
            raise ProofError("the empty log has another root")
        return
    # 1.-2. A complete first tree's root is not repeated in the proof.
    path = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    if not path:
        raise ProofError("the consistency proof is too short")
    first, second = _climb(size1 - 1, size2 - 1, path)
    # 6. Compare with both roots.
    if not hmac.compare_digest(first, root1) or not hmac.compare_digest(second, root2):
        raise ProofError("the newer log does not contain the older one")


def _climb(fn: int, sn: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Fold a consistency proof into the two roots it leads to."""
    # 3.-4. Start where the first tree's last leaf hangs off a complete subtree.
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]
    # 5. For each further hash of the proof:
    for sibling in path[1:]:
        if sn == 0:
            raise ProofError("the consistency proof is too long")
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise ProofError("the consistency proof is too short")
    return first, second


def _check_lengths(hashes: Sequence[bytes]) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise ProofError("a hash of a proof has 32 bytes")
