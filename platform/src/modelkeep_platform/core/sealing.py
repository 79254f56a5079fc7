"""The words of the sealed format that callers of the `Sealer` port use."""

from enum import IntEnum, StrEnum


class Suite(IntEnum):
    """1: C2SP chunked-encryption, 16 KiB chunks, for small things; 2: 1 MiB chunks, for weights and data."""

    SMALL = 1
    LARGE = 2


class Purpose(StrEnum):
    """What a sealed value is for; part of its context, so that none passes for another."""

    WEIGHTS = "weights"
    GRAPH = "graph"
    DATASET = "dataset"
    CHECKPOINT = "checkpoint"
    MANIFEST = "manifest"
    AUDIT = "audit"
    WRAP_DEK = "wrap-dek"
    WRAP_KEK = "wrap-kek"
    SIGNING_KEY = "signing-key"
