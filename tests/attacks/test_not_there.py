"""What the design's list of attacks names and this platform does not have: each line by the refusal it ends in.

An attack on something that is not there needs no defence, as long as it stays away. So each row says what is meant, why
it does not apply, and tries it: when one of these things is added, its row fails, and its attacks are due. The page
docs/explanation/limitations.md names the same things.
"""

import hashlib
import io
import json
import re
import socket
import tarfile
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import click
import httpx
import pytest

from modelkeep_platform.app.settings import Settings
from modelkeep_platform.cli.main import main as platform_command
from modelkeep_platform.keys.service import KeyService
from services.evidence import Evidence
from services.house import GRAPH, PRIVATE, SCHEMA, WEIGHTS, House

LIMITATIONS: Final = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "limitations.md"


class Edge:
    """A whole platform, somebody who may upload to it and predict, and the ports that it opened."""

    def __init__(self, folder: Path) -> None:
        before = listening()
        self.house = House(folder)
        self.ports = listening() - before
        self.house.acme.clients["developer"].models.upload("model", graph=GRAPH, weights=WEIGHTS)
        self.evidence = Evidence(self.house)
        self.before = self.evidence.state()
        self.http = self.house.http(self.house.acme.clients["developer"])

    def close(self) -> None:
        """Stop it."""
        self.http.close()
        self.house.close()

    def refuses(self, status: int, code: str, answer: httpx.Response) -> None:
        """Check an answer, and that the refusal and why is in the tenant's log and in no other.

        A refused completion is two entries: of the upload that it ended, and of the call.
        """
        error = answer.json()["error"]
        said = answer.headers.get("x-error-code") if isinstance(error, str) else error["code"]
        assert (answer.status_code, said) == (status, code), answer.text
        found = self.evidence.entries(answer.headers["x-request-id"])
        assert {entry.tenant for entry in found} == {"acme"}
        ended = [("failed", code)] if answer.request.url.path.endswith("/complete") else []
        recorded = [(one.outcome, one.facts.get("reason") or one.facts.get("code")) for one in found]
        assert recorded == [*ended, ("denied", code)]

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Send something; what is refused changes nothing."""
        self.before = self.evidence.state()
        return self.unchanged(self.http.post(path, **options))

    def unchanged(self, answer: httpx.Response, *, ended: int = 0) -> httpx.Response:
        """Check that a refusal leaves every row as it was before the last `post`, but uploads that it `ended`."""
        if not answer.is_success:
            after = self.evidence.state()
            new = [row for row in after["uploads"] if row not in self.before["uploads"]]
            assert [re.findall(r"'state': '(\w+)'", row) for row in new] == [["aborted"]] * ended
            assert {**after, "uploads": []} == {**self.before, "uploads": []}, answer.text
        return answer

    def graph(self, graph: object) -> httpx.Response:
        """Declare a version with `graph`."""
        said = {"weights_bytes": len(WEIGHTS), "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest()}
        return self.post("/v1/models/cells/versions", json={"graph": graph, **said})

    def weights(self, data: bytes) -> httpx.Response:
        """Upload `data` as weights; return what its completion is answered with."""
        said = {"weights_bytes": len(data), "weights_sha256": hashlib.sha256(data).hexdigest()}
        return self.complete(self.post("/v1/models/cells/versions", json={"graph": GRAPH, **said}), data)

    def dataset(self, data: bytes, **changes: Any) -> httpx.Response:
        """Declare a dataset; it is no upload yet."""
        said = {"name": "rows", "format": "csv", "schema": SCHEMA, "privacy": PRIVATE, "size_bytes": len(data)}
        digest = hashlib.sha256(data).hexdigest()
        return self.post("/v1/datasets", json={**said, "sha256": digest, "description": "", **changes})

    def complete(self, begun: httpx.Response, data: bytes) -> httpx.Response:
        """Send the bytes of an upload and complete it."""
        assert begun.status_code == 201, begun.text
        path = f"/v1/uploads/{begun.json()['upload']['id']}"
        digest = {"content-digest": f"sha-256=:{b64encode(hashlib.sha256(data).digest()).decode()}:"}
        assert self.http.put(f"{path}/parts/0", content=data, headers=digest).status_code == 200
        # Of what is refused now, nothing is left of what was begun either, but the upload, given up.
        return self.unchanged(self.http.post(f"{path}/complete"), ended=1)


def listening() -> set[int]:
    """Return the ports that this process listens on."""
    own = {path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.add(int(words[1].rpartition(":")[2], 16))
    return found


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    edge = Edge(Path(tmp_path_factory.mktemp("absent")))
    yield edge
    edge.close()


# --- files ------------------------------------------------------------------------------------------

# A ModelProto by hand: ir_version 8, a producer, and a graph with one initializer whose external data lies elsewhere.
_LOCATION: Final = b"\n\x08location\x12\x13../../../etc/passwd"
_TENSOR: Final = b"\x42\x01wj" + bytes([len(_LOCATION)]) + _LOCATION + b"p\x01"
ONNX: Final = b"\x08\x08\x12\x07pytorch:" + bytes([len(_TENSOR) + 2]) + b"*" + bytes([len(_TENSOR)]) + _TENSOR
CONFIG: Final[dict[str, Any]] = {
    "model_type": "llama",
    "architectures": ["Evil"],
    "auto_map": {"AutoModel": "evil--modeling.Evil"},
    "trust_remote_code": True,
    "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


def zipped() -> bytes:
    """Return a zip with a path that leaves its folder, and a name twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../etc/cron.d/x", b"a,b,kind\n")
        archive.writestr("a.csv", b"a,b,kind\n")
    return out.getvalue()


def tarred() -> bytes:
    """Return a tar with a link out of its folder and a device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("rows.csv")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return out.getvalue()


SEVEN_ZIP: Final = b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(64)


def no_onnx(edge: Edge) -> None:
    edge.refuses(422, "invalid_weights", edge.weights(ONNX))
    edge.refuses(422, "invalid_graph", edge.graph({"ir_version": 8, "graph": {"node": []}}))
    edge.refuses(422, "invalid_graph", edge.graph({**GRAPH, "format": "onnx"}))
    custom = {**GRAPH["nodes"][0], "op": "com.evil::Custom"}
    edge.refuses(422, "operation_not_allowed", edge.graph({**GRAPH, "nodes": [custom]}))
    edge.refuses(422, "invalid_dataset", edge.dataset(ONNX, format="onnx"))


def no_config(edge: Edge) -> None:
    edge.refuses(422, "invalid_graph", edge.graph(CONFIG))
    edge.refuses(422, "invalid_graph", edge.graph({**GRAPH, **CONFIG}))
    edge.refuses(422, "invalid_weights", edge.weights(json.dumps(CONFIG).encode()))
    said = {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    for name in ("config", "trust_remote_code", "auto_map", "tokenizer"):
        edge.refuses(400, "invalid_body", edge.post("/v1/models/cells/versions", json={**said, name: CONFIG}))


def no_archives(edge: Edge) -> None:
    for data, code in ((zipped(), "pickle_refused"), (tarred(), "pickle_refused"), (SEVEN_ZIP, "pickle_refused")):
        edge.refuses(422, code, edge.weights(data))
        edge.refuses(422, "invalid_dataset", edge.complete(edge.dataset(data), data))
    for form in ("zip", "tar", "7z", "tar.gz", "parquet"):
        edge.refuses(422, "invalid_dataset", edge.dataset(b"x", format=form))


# --- wires ------------------------------------------------------------------------------------------


def no_grpc(edge: Edge) -> None:
    assert edge.ports == {int(edge.house.url.rpartition(":")[2])}
    head = {"content-type": "application/grpc", "te": "trailers"}
    with edge.evidence.strangers_counted(1, 404):
        call = edge.post("/inference.GRPCInferenceService/ModelInfer", content=bytes(5), headers=head)
    assert (call.status_code, call.json()["error"]["code"]) == (404, "no_such_path")
    # The preface of HTTP/2, which gRPC needs: the server speaks HTTP/1.1 alone.
    with socket.create_connection(("127.0.0.1", min(edge.ports)), timeout=10) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert raw.recv(64)[:12] in {b"", b"HTTP/1.1 400"}
    assert not [item.name for item in fields(Settings) if "grpc" in item.name]


def no_binary(edge: Edge) -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 8}}]}).encode()
    path = "/v2/models/model/infer"
    for size in (len(head), 0, 1 << 70, -1):
        binary = {"inference-header-content-length": str(size)}
        edge.refuses(422, "binary_not_supported", edge.post(path, content=head + bytes(8), headers=binary))
    edge.refuses(400, "invalid_body", edge.post(path, content=head + bytes(8)))
    edge.refuses(400, "invalid_body", edge.post(path, content=head))


# --- what is fetched, and keys ------------------------------------------------------------------------


def no_addresses(edge: Edge) -> None:
    for name in ("webhook", "callback", "source", "store", "bucket"):
        edge.refuses(400, "invalid_body", edge.dataset(b"x", **{name: "s3://bucket/rows.csv"}))
    for endpoint in edge.house.server.platform.edge.endpoints:
        names = set(getattr(endpoint.body, "__struct_fields__", ())) | set(endpoint.query)
        assert not {name for name in names if any(word in name for word in ("url", "uri", "hook", "bucket"))}
    named = {item.name for item in fields(Settings) if any(word in item.name for word in ("hook", "bucket", "s3"))}
    assert not named


def commands(at: click.Command, path: str = "") -> Iterator[str]:
    """Yield each command below `at`, with its groups."""
    yield path
    for name, command in at.commands.items() if isinstance(at, click.Group) else ():
        yield from commands(command, f"{path} {name}")


def no_rotation_of_keys(edge: Edge) -> None:
    endpoints = edge.house.server.platform.edge.endpoints
    named = [*(endpoint.path for endpoint in endpoints), *commands(platform_command), *vars(KeyService)]
    assert not [name for name in named if "rewrap" in name or re.search(r"kek.*rotat|rotat.*kek", name.lower())]
    kept = edge.evidence.state()["wrapped_keks"]
    versions = [row for row in kept if "'version': 1" not in row]
    assert kept
    assert versions == [], "a second version of a key-encryption key: old ones below the minimum are to be refused"


ABSENT: Final[list[tuple[str, str, Callable[[Edge], None], str]]] = [
    ("ONNX", "a model is a graph of the closed list with safetensors; no protobuf is parsed", no_onnx, "ONNX"),
    ("Hugging Face configs", "a graph has no field for code, templates or names of classes", no_config, "Hugging Face"),
    ("archives", "an upload is one file of one format; nothing is unpacked", no_archives, "archives"),
    ("gRPC fields", "one port, which speaks HTTP/1.1", no_grpc, "gRPC"),
    ("binary tensors", "inputs are numbers in JSON; there is no binary size to disagree with", no_binary, "binary"),
    ("webhooks, object stores", "no route takes an address, and nothing is fetched", no_addresses, "webhooks"),
    ("rotation and rewrap of keys", "a tenant's key has one version", no_rotation_of_keys, "not rotated"),
]
"""What; why its attacks do not apply; the refusals it ends in; how the page of limitations names it."""


@pytest.mark.e2e
@pytest.mark.parametrize(("what", "why", "check", "_"), ABSENT, ids=[row[0] for row in ABSENT])
def test_what_is_not_there_is_refused(edge: Edge, what: str, why: str, check: Callable[[Edge], None], _: str) -> None:
    before = edge.http.get("/v1/models").json()["items"]
    check(edge)
    assert edge.http.get("/v1/models").json()["items"] == before, f"{what}: {why}"


@pytest.mark.parametrize("named", [row[3] for row in ABSENT])
def test_the_page_of_limitations_names_it(named: str) -> None:
    assert named in LIMITATIONS.read_text(encoding="utf-8")
