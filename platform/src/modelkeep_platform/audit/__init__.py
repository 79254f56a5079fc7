"""The append-only Merkle log: entries, signed checkpoints and proofs that show any later change."""
