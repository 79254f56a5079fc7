"""Writes vectors.json from the specification alone: ``python tests/vectors/sealed/generate.py``.

Shares no code with the platform. HKDF-Expand is RFC 5869 section 2.3 over `hmac`; AES-GCM is the block mode, not the
AEAD class that the platform uses; the rest follows docs/reference/sealed-format.md and C2SP chunked-encryption v1.
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

LABELS: Final = {
    1: (b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM", 16_384),
    2: (b"modelkeep/sealed@v1+AEAD_AES_256_GCM+1MiB", 1_048_576),
}
KEY: Final = hashlib.sha256(b"modelkeep sealed vectors: key").digest()
OTHER_KEY: Final = hashlib.sha256(b"modelkeep sealed vectors: other key").digest()
TENANT: Final = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER_TENANT: Final = "bbbbbbbb-0000-4000-8000-000000000002"
OBJECT: Final = "mdl_aebagbafaydqqcikbmga2dqpca"


def fields(suite: int) -> list[str | int]:
    """Return the fields of the context that every positive vector has."""
    return ["graph" if suite == 1 else "weights", TENANT, OBJECT, 3, "graph" if suite == 1 else "part-0", suite]


def canonical(values: list[str | int]) -> bytes:
    raw = [str(value).encode() for value in values]
    return b"".join(len(value).to_bytes(4, "big") + value for value in raw)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha512).digest()
        out, counter = out + block, counter + 1
    return out[:length]


def nonce(base: bytes, index: int) -> bytes:
    counter = index.to_bytes(12, "big")
    return bytes(one ^ other for one, other in zip(base, counter, strict=True))


def seal(suite: int, key: bytes, context: bytes, salt: bytes, plaintext: bytes) -> bytes:
    label, size = LABELS[suite]
    okm = expand(key, label + b"\x00" + salt + context, 76)
    out = [salt, okm[44:]]
    for index in range(len(plaintext) // size + 1):
        cipher = Cipher(algorithms.AES(okm[:32]), modes.GCM(nonce(okm[32:44], index))).encryptor()
        out += [cipher.update(plaintext[index * size : (index + 1) * size]) + cipher.finalize(), cipher.tag]
    return b"".join(out)


def refusal(key: bytes, context: bytes, data: bytes) -> str | None:
    """Return why `data` does not open: short, commitment or chunk; None when it opens."""
    if len(data) < 56:
        return "short"
    derived = [(expand(key, label + b"\x00" + data[:24] + context, 76), size) for label, size in LABELS.values()]
    matching = [(okm, size) for okm, size in derived if okm[44:] == data[24:56]]
    if not matching:
        return "commitment"
    okm, size = matching[0]
    chunks = [data[at : at + size + 16] for at in range(56, len(data), size + 16)]
    if not chunks or len(chunks[-1]) == size + 16 or len(chunks[-1]) < 16:
        return "short"
    for index, chunk in enumerate(chunks):
        cipher = Cipher(algorithms.AES(okm[:32]), modes.GCM(nonce(okm[32:44], index), chunk[-16:])).decryptor()
        cipher.update(chunk[:-16])
        try:
            cipher.finalize()
        except InvalidTag:
            return "chunk"
    return None


def plaintext(length: int) -> bytes:
    return hashlib.shake_256(b"modelkeep sealed vectors: plaintext").digest(length)


def salt(name: str) -> bytes:
    return hashlib.sha256(b"modelkeep sealed vectors: salt: " + name.encode()).digest()[:24]


def build(pieces: list[list[Any]], flip: int | None, files: dict[str, bytes]) -> bytes:
    """Put a file together from pieces of others, then flip the lowest bit of one byte."""
    out = bytearray(b"".join(bytes(one[1]) if one[0] == "zeros" else files[one[0]][one[1] : one[2]] for one in pieces))
    if flip is not None:
        out[flip] ^= 1
    return bytes(out)


def positives(suite: int) -> list[dict[str, Any]]:
    size = LABELS[suite][1]
    lengths = {"empty": 0, "one byte": 1, "chunk - 1": size - 1, "chunk": size, "chunk + 1": size + 1}
    lengths |= {"three chunks": 2 * size + 5}
    vectors = []
    for what, length in lengths.items():
        name = f"suite {suite}: {what}"
        file = seal(suite, KEY, canonical(fields(suite)), salt(name), plaintext(length))
        vector = {
            "name": name,
            "suite": suite,
            "context": fields(suite),
            "salt": salt(name).hex(),
            "plaintext_bytes": length,
            "sealed_bytes": len(file),
            "sealed_sha256": hashlib.sha256(file).hexdigest(),
            "header": file[:56].hex(),
            "last_chunk": file[56 + (length // size) * (size + 16) :].hex() if length % size < size - 1 else "",
        }
        vectors.append(vector)
    return vectors


def negatives(suite: int) -> list[dict[str, Any]]:
    size = LABELS[suite][1]
    full, end = size + 16, 2 * (size + 16) + 56 + 21
    one, two, three = f"suite {suite}: one byte", f"suite {suite}: chunk", f"suite {suite}: three chunks"
    other = f"suite {3 - suite}: three chunks"
    head, first, second, last = (
        [three, 0, 56],
        [three, 56, 56 + full],
        [three, 56 + full, 56 + 2 * full],
        [three, end - 21, end],
    )
    whole: list[list[Any]] = [[three, 0, end]]
    made: list[tuple[str, str, list[list[Any]], dict[str, Any]]] = []

    def add(name: str, kind: str, pieces: list[list[Any]], **more: Any) -> None:
        made.append((name, kind, pieces, more))

    add("a bit of the salt", "commitment", whole, flip=0)
    add("the last bit of the salt", "commitment", whole, flip=23)
    add("a bit of the commitment", "commitment", whole, flip=24)
    add("the last bit of the commitment", "commitment", whole, flip=55)
    for index, (begin, stop) in enumerate([(56, 56 + full), (56 + full, 56 + 2 * full), (end - 21, end)]):
        add(f"a bit of chunk {index}", "chunk", whole, flip=begin)
        add(f"a bit of the tag of chunk {index}", "chunk", whole, flip=stop - 1)
    add("nothing", "short", [])
    add("cut within the salt", "short", [[three, 0, 23]])
    add("cut after the salt", "short", [[three, 0, 24]])
    add("cut within the commitment", "short", [[three, 0, 55]])
    add("cut after the header", "short", [head])
    add("cut after 15 bytes of chunk 0", "short", [head, [three, 56, 71]])
    add("cut after 16 bytes of chunk 0", "chunk", [head, [three, 56, 72]])
    add("cut one byte before the end of chunk 0", "chunk", [[three, 0, 55 + full]])
    add("cut after chunk 0", "short", [head, first])
    add("cut after chunk 1", "short", [head, first, second])
    add("cut within the last tag", "short", [head, first, second, [three, end - 21, end - 6]])
    add("cut one byte before the end", "chunk", [[three, 0, end - 1]])
    add("the end mark of a full last chunk is gone", "short", [[two, 0, 56 + full]])
    add("chunks 0 and 1 swapped", "chunk", [head, second, first, last])
    add("chunk 0 twice", "chunk", [head, first, first, second, last])
    add("chunk 0 in the place of chunk 1", "chunk", [head, first, first, last])
    add("chunk 0 dropped", "chunk", [head, second, last])
    add("chunk 1 dropped", "chunk", [head, first, last])
    add("the last chunk twice", "chunk", [head, first, second, last, last])
    add("the last chunk first", "chunk", [head, last, first, second])
    add("one byte after the end", "chunk", [*whole, ["zeros", 1]])
    add("a tag's length after the end", "chunk", [*whole, ["zeros", 16]])
    add("filled up to the border", "short", [*whole, ["zeros", full - 21]])
    add("a whole chunk after the end", "chunk", [*whole, ["zeros", full]])
    add("another file after the end", "chunk", [*whole, [one, 0, 73]])
    add("another file's header", "chunk", [[one, 0, 56], first, second, last])
    add("another file's salt", "commitment", [[one, 0, 24], [three, 24, end]])
    add("another file's commitment", "commitment", [[three, 0, 24], [one, 24, 56], first, second, last])
    add("another file's last chunk", "chunk", [head, first, second, [one, 56, 73]])
    add("another key", "commitment", whole, key="other")
    names = ["purpose", "tenant", "object", "version", "name", "suite"]
    changes = ["checkpoint", OTHER_TENANT, "mdl_aebagbafaydqqcikbmga2dqpcq", 4, "part-1", 3 - suite]
    for at, (name, change) in enumerate(zip(names, changes, strict=True)):
        add(
            f"a context with another {name}",
            "commitment",
            whole,
            context=[*fields(suite)[:at], change, *fields(suite)[at + 1 :]],
        )
    add("an empty context", "commitment", whole, context=[])
    add("the other suite's file", "commitment", [[other, 0, 200]])
    made.append(
        ("the other suite's header, of this context", "chunk", [["relabelled", 0, 56], first, second, last], {})
    )
    return [
        {"name": f"suite {suite}: {name}", "suite": suite, "kind": kind, "pieces": pieces, **more}
        for name, kind, pieces, more in made
    ]


def main() -> dict[str, Any]:
    """Return what vectors.json holds, each failure checked against the reader above."""
    good = [vector for suite in LABELS for vector in positives(suite)]
    files = {
        vector["name"]: seal(
            vector["suite"],
            KEY,
            canonical(vector["context"]),
            bytes.fromhex(vector["salt"]),
            plaintext(vector["plaintext_bytes"]),
        )
        for vector in good
    }
    bad = [vector for suite in LABELS for vector in negatives(suite)]
    relabelled = {}
    for vector in bad:
        suite = vector["suite"]
        relabelled[str(suite)] = seal(3 - suite, KEY, canonical(fields(suite)), salt(f"relabelled {suite}"), b"").hex()
        data = build(
            vector["pieces"], vector.get("flip"), {**files, "relabelled": bytes.fromhex(relabelled[str(suite)])}
        )
        key = OTHER_KEY if vector.get("key") == "other" else KEY
        kind = refusal(key, canonical(vector.get("context", fields(suite))), data)
        if kind != vector["kind"]:
            raise AssertionError(f"{vector['name']}: {kind}")
    return {
        "key": KEY.hex(),
        "other_key": OTHER_KEY.hex(),
        "plaintext": "the first bytes of SHAKE-256 of the ASCII text `modelkeep sealed vectors: plaintext`",
        "relabelled": relabelled,
        "opens": good,
        "refused": bad,
    }


def text() -> str:
    """Return vectors.json: one vector a line."""
    made = main()
    parts = [
        f" {json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        if isinstance(value, list)
        else f" {json.dumps(name)}: {json.dumps(value)}"
        for name, value in made.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    Path(__file__).with_name("vectors.json").write_text(text())
