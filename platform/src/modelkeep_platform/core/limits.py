"""The platform's limits, in one place; checked before anything is parsed."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

MAX_JSON_BYTES: Final = 1 * MIB
MAX_GRAPH_BYTES: Final = 4 * MIB
MAX_JSON_DEPTH: Final = 64
MAX_TOKEN_BYTES: Final = 8 * KIB
MAX_TOKEN_DEPTH: Final = 8
MAX_PART_BYTES: Final = 8 * MIB
MAX_PARTS: Final = 4096
MAX_UPLOAD_BYTES: Final = MAX_PART_BYTES * MAX_PARTS
MAX_INFER_BYTES: Final = 16 * MIB
MAX_POLICY_BYTES: Final = 64 * KIB
MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
UPLOAD_EXPIRY_S: Final = 24 * 3600
