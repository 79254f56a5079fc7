"""The Merkle tree of RFC 6962, section 2: hashes, roots and the verification of proofs.

Pure: bytes in, bytes or an error out. Leaf and node hashes have different prefixes, so that no node
passes for a leaf. Verification raises; it never returns a verdict that could be ignored.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from modelkeep_platform.core.errors import IntegrityError

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


class ProofError(IntegrityError):
    """A proof does not show what it claims."""

    code = "proof_invalid"


def leaf_hash(data: bytes) -> bytes:
    """Return SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root over `leaf_hashes`; SHA-256 of nothing when there are none.

    Takes them as they come and keeps one hash for each complete subtree: as many as the size has ones in binary.
    """
    complete: list[tuple[int, bytes]] = []
    for leaf in leaf_hashes:
        level, found = 0, leaf
        while complete and complete[-1][0] == level:
            level, found = level + 1, node_hash(complete.pop()[1], found)
        complete.append((level, found))
    if not complete:
        return EMPTY_ROOT
    root = complete.pop()[1]
    while complete:
        root = node_hash(complete.pop()[1], root)
    return root


def range_root(start: int, end: int, node: Callable[[int, int], bytes]) -> bytes:
    """Return the root of leaves [start, end) of which `start` is aligned as RFC 6962 splits them.

    Args:
        start: first leaf.
        end: one past the last leaf.
        node: gives the hash of the complete subtree `index` of height `level`.
    """
    count = end - start
    if count == 0:
        return EMPTY_ROOT
    if count & (count - 1) == 0 and start % count == 0:
        return node(count.bit_length() - 1, start // count)
    split = _split(count)
    return node_hash(range_root(start, start + split, node), range_root(start + split, end, node))


def inclusion_path(index: int, size: int, node: Callable[[int, int], bytes]) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves (RFC 6962, 2.1.1), leaf upwards.

    Raises:
        ProofError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ProofError("there is no such leaf in a tree of this size")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            path.append(range_root(split, end, node))
            end = split
        else:
            path.append(range_root(start, split, node))
            start = split
    return path[::-1]


def consistency_path(old: int, new: int, node: Callable[[int, int], bytes]) -> list[bytes]:
    """Return the consistency proof from `old` to `new` leaves (RFC 6962, 2.1.2).

    Raises:
        ProofError: `old` is larger than `new`, or negative.
    """
    if not 0 <= old <= new:
        raise ProofError("a log only grows: the older size is larger than the newer")
    if old in (0, new):
        return []
    path: list[bytes] = []
    start, end, complete = 0, new, True
    while old != end:
        split = start + _split(end - start)
        if old <= split:
            path.append(range_root(split, end, node))
            end = split
        else:
            path.append(range_root(start, split, node))
            start, complete = split, False
    if not complete:
        path.append(range_root(start, end, node))
    return path[::-1]


def verify_inclusion(leaf_hash: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Verify that `leaf_hash` is leaf `index` of the tree with `size` leaves and `root` (RFC 9162, 2.1.3.2).

    Raises:
        ProofError: it does not show that.
    """
    if not 0 <= index < size:
        raise ProofError("there is no such leaf in a tree of this size")
    _check_hashes([leaf_hash, root, *proof])
    position, last, computed = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        position >>= 1
        last >>= 1
    if last or not hmac.compare_digest(computed, root):
        raise ProofError("the inclusion proof does not lead to the root")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Verify that the tree of `size1` leaves and `root1` is a prefix of that of `size2` and `root2`.

    Raises:
        ProofError: it is not, or the proof does not show it (RFC 9162, 2.1.4.2).
    """
    _check_hashes([root1, root2, *proof])
    if not 0 <= size1 <= size2:
        raise ProofError("the log has become shorter than it was")
    if size1 == size2:
        if proof or not hmac.compare_digest(root1, root2):
            raise ProofError("two different logs of the same size were shown")
        return
    if size1 == 0:
        if proof or not hmac.compare_digest(root1, EMPTY_ROOT):
            raise ProofError("the empty log has no such root")
        return
    path = list(proof)
    if size1 & (size1 - 1) == 0:
        path.insert(0, root1)
    if not path:
        raise ProofError("the consistency proof is too short")
    computed1, computed2 = _climb(size1 - 1, size2 - 1, path)
    if not hmac.compare_digest(computed1, root1) or not hmac.compare_digest(computed2, root2):
        raise ProofError("the newer log does not contain the older one")


def _climb(first: int, last: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Fold a consistency proof into the two roots it leads to (RFC 9162, 2.1.4.2, steps 3 to 5)."""
    while first & 1:
        first >>= 1
        last >>= 1
    computed1 = computed2 = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if first & 1 or first == last:
            computed1 = node_hash(sibling, computed1)
            computed2 = node_hash(sibling, computed2)
            while not first & 1 and first:
                first >>= 1
                last >>= 1
        else:
            computed2 = node_hash(computed2, sibling)
        first >>= 1
        last >>= 1
    if last:
        raise ProofError("the consistency proof is too short")
    return computed1, computed2


def _split(count: int) -> int:
    """Return the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise ProofError("a hash of a proof has 32 bytes")
