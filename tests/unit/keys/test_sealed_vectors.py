"""The sealed format is the one of the vectors, and of an implementation that is not ours."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor

from modelkeep_platform.core.canonical import canonical_bytes
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.keys import sealed as sealed_module
from modelkeep_platform.keys.context import context as context_of
from modelkeep_platform.keys.sealed import SealedError, open_sealed, seal

FOLDER = Path(__file__).parents[2] / "vectors" / "sealed"
FILE = json.loads((FOLDER / "vectors.json").read_text())
KEY, OTHER_KEY = bytes.fromhex(FILE["key"]), bytes.fromhex(FILE["other_key"])
KINDS = {
    "short": "the sealed bytes are cut short",
    "commitment": "the sealed bytes are not of this key and context",
    "chunk": "the sealed bytes do not authenticate",
}
PLAINTEXT = hashlib.shake_256(b"modelkeep sealed vectors: plaintext").digest(2 * 1024 * 1024 + 5)
CONTEXTS = {vector["suite"]: canonical_bytes(*vector["context"]) for vector in FILE["opens"]}


def _seal(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", lambda _count: bytes.fromhex(vector["salt"]))
        plaintext = PLAINTEXT[: vector["plaintext_bytes"]]
        return seal(KEY, canonical_bytes(*vector["context"]), plaintext, suite=Suite(vector["suite"]))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Every positive vector's file."""
    with pytest.MonkeyPatch.context() as patch:
        return {vector["name"]: _seal(vector, patch) for vector in FILE["opens"]}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sealed_vectors_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_its_generator_writes() -> None:
    assert _generator().text() == (FOLDER / "vectors.json").read_text()


@pytest.mark.parametrize("vector", FILE["opens"], ids=lambda vector: vector["name"])
def test_sealing_gives_the_bytes_of_the_vector_and_they_open(
    vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = _seal(vector, monkeypatch)
    assert len(sealed) == vector["sealed_bytes"]
    assert sealed[:56].hex() == vector["header"]
    assert sealed.endswith(bytes.fromhex(vector["last_chunk"]))
    assert hashlib.sha256(sealed).hexdigest() == vector["sealed_sha256"]
    assert open_sealed(KEY, canonical_bytes(*vector["context"]), sealed) == PLAINTEXT[: vector["plaintext_bytes"]]


@pytest.mark.parametrize("vector", FILE["refused"], ids=lambda vector: vector["name"])
def test_each_failure_is_refused_for_its_own_reason(vector: dict[str, Any], files: dict[str, bytes]) -> None:
    known = {**files, "relabelled": bytes.fromhex(FILE["relabelled"][str(vector["suite"])])}
    pieces = [bytes(one[1]) if one[0] == "zeros" else known[one[0]][one[1] : one[2]] for one in vector["pieces"]]
    data = bytearray(b"".join(pieces))
    if "flip" in vector:
        data[vector["flip"]] ^= 1
    bound = canonical_bytes(*vector["context"]) if "context" in vector else CONTEXTS[vector["suite"]]
    with pytest.raises(SealedError) as raised:
        open_sealed(OTHER_KEY if vector.get("key") == "other" else KEY, bound, bytes(data))
    assert raised.value.error_code == "sealed_invalid"
    assert raised.value.message == KINDS[vector["kind"]]


def test_the_contexts_of_the_vectors_are_the_platforms() -> None:
    for vector in FILE["opens"]:
        purpose, tenant, object_id, version, name, suite = vector["context"]
        made = context_of(
            purpose=Purpose(purpose),
            tenant=TenantId(tenant),
            object_id=ObjectId(object_id),
            version=version,
            name=name,
            suite=Suite(suite),
        )
        assert made == canonical_bytes(*vector["context"])


def test_the_page_names_every_purpose_label_and_refusal() -> None:
    page = (FOLDER.parents[2] / "docs" / "reference" / "sealed-format.md").read_text()
    refusals = ["sealed_invalid", "key_missing", "part_mismatch", "blob_missing", "storage_failed"]
    refusals += ["root_key_unusable", "root_key_exists", "root_key_inside", "root_key_other"]
    labels = [known.label.decode() for known in sealed_module._SUITES.values()]
    assert [word for word in [*Purpose, *labels, *refusals] if f"`{word}`" not in page] == []


LENGTHS = [0, 1, 16_383, 16_384, 16_385, 40_000]


@pytest.mark.parametrize("length", LENGTHS)
def test_another_implementation_opens_what_suite_1_seals(length: int) -> None:
    theirs = Cobblestone256Decryptor(KEY, b"context")
    sealed = seal(KEY, b"context", PLAINTEXT[:length], suite=Suite.SMALL)
    assert theirs.update(sealed) + theirs.finalize() == PLAINTEXT[:length]


@pytest.mark.parametrize("length", LENGTHS)
def test_suite_1_opens_what_another_implementation_seals(length: int) -> None:
    theirs = Cobblestone256Encryptor(KEY, b"context")
    sealed = theirs.update(PLAINTEXT[:length]) + theirs.finalize()
    assert open_sealed(KEY, b"context", sealed) == PLAINTEXT[:length]
