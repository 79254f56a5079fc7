"""The tree against a second, recursive definition, and every proof against every neighbouring size."""

import hashlib

import pytest

from modelkeep_platform.audit.merkle import (
    EMPTY_ROOT,
    ProofError,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(bytes([n])) for n in range(33)]


def naive_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def node(level: int, index: int) -> bytes:
    return naive_root(LEAVES[index << level : (index + 1) << level])


def test_root_of_nothing_and_of_one_and_two_leaves() -> None:
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()
    assert leaf_hash(b"") == bytes.fromhex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d")
    assert root_of(LEAVES[:2]) == node_hash(LEAVES[0], LEAVES[1])


@pytest.mark.parametrize("size", range(34))
def test_root_agrees_with_the_recursive_definition(size: int) -> None:
    assert root_of(LEAVES[:size]) == naive_root(LEAVES[:size])


@pytest.mark.parametrize("size", range(1, 34))
def test_every_inclusion_proof_verifies_and_fails_when_anything_differs(size: int) -> None:
    root = naive_root(LEAVES[:size])
    for index in range(size):
        proof = inclusion_path(index, size, node)
        verify_inclusion(LEAVES[index], index, size, root, proof)
        for wrong in (
            (leaf_hash(b"other"), index, size, root, proof),
            (LEAVES[index], index, size, leaf_hash(b"x"), proof),
            (LEAVES[index], index, size, root, [*proof, root]),
            (LEAVES[index], size, size, root, proof),
        ):
            with pytest.raises(ProofError):
                verify_inclusion(*wrong)
        if proof:
            with pytest.raises(ProofError):
                verify_inclusion(LEAVES[index], index, size, root, proof[:-1])
            with pytest.raises(ProofError):
                verify_inclusion(LEAVES[index], index, size, root, [proof[0][:-1], *proof[1:]])


@pytest.mark.parametrize("new", range(34))
def test_every_consistency_proof_verifies_and_fails_when_anything_differs(new: int) -> None:
    root2 = naive_root(LEAVES[:new])
    for old in range(new + 1):
        root1 = naive_root(LEAVES[:old])
        proof = consistency_path(old, new, node)
        verify_consistency(old, new, root1, root2, proof)
        with pytest.raises(ProofError):
            verify_consistency(old, new, root1, leaf_hash(b"fork"), proof) if old else verify_consistency(
                old, new, leaf_hash(b"fork"), root2, proof
            )
        if old:
            with pytest.raises(ProofError):
                verify_consistency(old, new, leaf_hash(b"fork"), root2, proof)
        if proof:
            with pytest.raises(ProofError):
                verify_consistency(old, new, root1, root2, proof[:-1])
        with pytest.raises(ProofError):
            verify_consistency(old, new, root1, root2, [*proof, root2])


def test_a_shorter_log_is_refused() -> None:
    with pytest.raises(ProofError) as caught:
        verify_consistency(5, 4, naive_root(LEAVES[:5]), naive_root(LEAVES[:4]), [])
    assert caught.value.message == "the log has become shorter than it was"


@pytest.mark.parametrize(("old", "new"), [(-1, 3), (4, 3)])
def test_no_proof_is_made_for_sizes_that_do_not_grow(old: int, new: int) -> None:
    with pytest.raises(ProofError):
        consistency_path(old, new, node)


def test_no_path_is_made_for_a_leaf_that_is_not_there() -> None:
    with pytest.raises(ProofError):
        inclusion_path(3, 3, node)
