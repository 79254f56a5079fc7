"""Abuse of requests: sizes, times, encodings, JSON, tensors, heads, methods and paths, against a whole platform.

Each is refused with the documented status, code and shape, leaks no path and no stack, and changes nothing. What a
known caller sent is in its tenant's log; what was refused before anybody was known is counted as a stranger's.
"""

import asyncio
import gzip
import json
import re
import socket
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.edge import GONE, STALL, Answer, call
from modelkeep_platform.core.limits import MAX_INFER_BYTES, MAX_JSON_BYTES, MAX_PART_BYTES, MAX_POLICY_BYTES
from modelkeep_platform.http.bodies import BODY_TIMEOUT_S
from modelkeep_platform.http.heads import MAX_HEADERS
from services.evidence import Evidence
from services.house import GRAPH, House, job

LEAKS = re.compile(r"Traceback|File \"|\.py\b|sqlite|sqlalchemy|/tmp|root\.key|platform\.db|blobs|\bline \d+, in\b")


class Target:
    """A platform with a model, called with the very bytes of an attack by somebody with every right."""

    def __init__(self, house: House) -> None:
        house.fill()
        house.acme.admin.audit.verify()
        self.house, self.platform, self.evidence = house, house.server.platform, Evidence(house)
        self.token = house.token(house.acme.admin)

    def send(self, method: str, path: str, *, known: bool = True, **options: Any) -> Answer:
        headers = [*options.pop("headers", ())]
        if known:
            headers.append(("authorization", f"Bearer {self.token}"))
        return call(self.platform.edge.asgi, method, path, headers=headers, **options)

    def state(self) -> dict[str, list[str]]:
        """Return all rows but those of the log and of what moves by itself."""
        return self.evidence.state()

    def logged(self, answer: Answer) -> list[tuple[str, str]]:
        """Return the outcome and the reason of what the log has of a call."""
        self.platform.ground.log.flush()
        entries = self.house.acme.admin.audit.entries(request_id=answer.headers["x-request-id"])
        return [(entry.outcome, str(entry.facts.get("reason") or entry.facts.get("error"))) for entry in entries]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    house = House(Path(tmp_path_factory.mktemp("requests")))
    yield Target(house)
    house.close()


def refused(answer: Answer, status: int, code: str, *, inference: bool = False) -> None:
    """Assert status, code and shape, and that nothing leaks."""
    assert (answer.status, answer.code) == (status, code), answer.body
    body = answer.json()
    assert set(body) == {"error"}
    if inference:
        assert isinstance(body["error"], str)
    else:
        assert set(body["error"]) == {"code", "message", "request_id", "details"}
        assert body["error"]["request_id"] == answer.headers["x-request-id"]
    assert not LEAKS.search(answer.body.decode()), answer.body
    assert "location" not in answer.headers


# --- bodies -------------------------------------------------------------------------------------------

LENGTH, ENCODING = "content-length", "content-encoding"
HUGE = b"x" * 65_536

BODIES = [
    pytest.param([b"{}"], [(LENGTH, "9" * 15)], 413, "too_large", id="declared"),
    pytest.param([b"{}"], [(LENGTH, "9" * 5000)], 413, "too_large", id="declared-beyond-any-number"),
    pytest.param([HUGE] * 100, [], 413, "too_large", id="chunked"),
    pytest.param([HUGE] * 100, [(LENGTH, "2")], 400, "invalid_length", id="longer-than-declared"),
    pytest.param([b"{}"], [(LENGTH, "3")], 400, "invalid_length", id="shorter-than-declared"),
    pytest.param([b"{}"], [(LENGTH, "2"), (LENGTH, "3")], 400, "invalid_length", id="declared-twice"),
    pytest.param([b"{}"], [(LENGTH, "-2")], 400, "invalid_length", id="declared-negative"),
    pytest.param([gzip.compress(b'{"text":""}')], [(ENCODING, "gzip")], 415, "encoding_refused", id="gzip"),
    pytest.param([zlib.compress(b"{}")], [(ENCODING, "deflate")], 415, "encoding_refused", id="deflate"),
    pytest.param([b"{}"], [(ENCODING, "identity"), (ENCODING, "br")], 415, "encoding_refused", id="second-encoding"),
    pytest.param([b'{"te', GONE], [], 400, "malformed", id="gone"),
    pytest.param([b""], [], 400, "invalid_json", id="empty"),
    pytest.param([b"{"], [], 400, "invalid_json", id="cut"),
    pytest.param([b'{"text":"a"} {}'], [], 400, "invalid_json", id="trailing"),
    pytest.param([b"\xef\xbb\xbf{}"], [], 400, "invalid_json", id="byte-order-mark"),
    pytest.param(['{"text":"a"}'.encode("utf-16")], [], 400, "invalid_json", id="utf-16"),
    pytest.param([b'{"text":"\xff"}'], [], 400, "invalid_json", id="not-utf-8"),
    pytest.param([b'{"text":"\\ud800"}'], [], 400, "invalid_json", id="half-a-pair"),
    pytest.param([b'{"text":"a","text":"b"}'], [], 400, "invalid_json", id="name-twice"),
    pytest.param([b'{"text":"a","t\\u0065xt":"b"}'], [], 400, "invalid_json", id="name-twice-escaped"),
    pytest.param([b"[" * 65], [], 400, "invalid_json", id="deep"),
    pytest.param([b"[" * 60_000 + b"]" * 60_000], [], 400, "invalid_json", id="depth-bomb"),
    pytest.param([b'{"a":' * 20_000], [], 400, "invalid_json", id="object-depth-bomb"),
    pytest.param([b'{"text":NaN}'], [], 400, "invalid_json", id="nan"),
    pytest.param([b'{"text":Infinity}'], [], 400, "invalid_json", id="infinity"),
    pytest.param([b'{"text":-Infinity}'], [], 400, "invalid_json", id="minus-infinity"),
    pytest.param([b'{"text":1e999}'], [], 400, "invalid_json", id="infinite-by-overflow"),
    pytest.param([b'{"text":' + b"9" * 5000 + b"}"], [], 400, "invalid_json", id="digits"),
    pytest.param([b'{"text":' + b"9" * 30 + b"}"], [], 400, "invalid_body", id="wide-integer"),
    pytest.param([b'{"text":1}'], [], 400, "invalid_body", id="number-for-text"),
    pytest.param([b'{"text":null}'], [], 400, "invalid_body", id="null-for-text"),
    pytest.param([b'{"text":"a","more":1}'], [], 400, "invalid_body", id="unknown-field"),
    pytest.param([b"{}"], [], 400, "invalid_body", id="missing-field"),
    pytest.param([b"[]"], [], 400, "invalid_body", id="array"),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), BODIES)
def test_bodies(target: Target, body: list[bytes], headers: list[tuple[str, str]], status: int, code: str) -> None:
    before = target.state()
    answer = target.send("POST", "/v1/policies", body=body, headers=headers)
    refused(answer, status, code)
    if status == 413:
        assert answer.asked <= 2 * MAX_POLICY_BYTES // len(HUGE) + 1, "the rest was not read"
    assert target.state() == before
    assert target.logged(answer) == [("denied", code)]


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("POST", "/v1/grants", MAX_JSON_BYTES),
        ("POST", "/v1/jobs", 4 * MAX_JSON_BYTES),
        ("POST", "/v1/models/m/versions", 4 * MAX_JSON_BYTES),
        ("PUT", "/v1/uploads/upl_x/parts/0", MAX_PART_BYTES),
        ("POST", "/v2/models/model/infer", MAX_INFER_BYTES),
    ],
)
def test_every_limit_holds_declared_and_chunked(target: Target, method: str, path: str, limit: int) -> None:
    before = target.state()
    declared = target.send(method, path, body=[b"x"], headers=[(LENGTH, str(limit + 1))])
    chunk = bytes(1 << 20)
    chunked = target.send(method, path, body=[chunk] * (limit // len(chunk) + 5))
    for answer in (declared, chunked):
        refused(answer, 413, "too_large", inference=path.startswith("/v2"))
        assert target.logged(answer) == [("denied", "too_large")]
    assert declared.asked == 0
    assert chunked.asked == limit // len(chunk) + 1
    assert target.state() == before


@pytest.mark.parametrize("path", ["/v1/policies", "/v2/models/model/infer", "/issuer/token"])
def test_slow_bodies(target: Target, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def timeout(seconds: float) -> asyncio.Timeout:
        waited.append(seconds)
        return asyncio.timeout(0.01)

    hurried = types.SimpleNamespace(timeout=timeout)
    monkeypatch.setattr("modelkeep_platform.http.bodies.asyncio", hurried)
    form = [("content-type", "application/x-www-form-urlencoded")] if path.startswith("/issuer") else []
    before = target.state()
    answer = target.send("POST", path, body=[b"{", STALL], headers=form)
    assert waited == [BODY_TIMEOUT_S]
    assert BODY_TIMEOUT_S <= 60
    assert answer.status == 408
    if form:
        assert answer.json()["error"] == "temporarily_unavailable"
    else:
        refused(answer, 408, "body_timeout", inference=path.startswith("/v2"))
        assert target.logged(answer) == [("denied", "body_timeout")]
    assert target.state() == before


def test_nobody_unknown_is_read_or_parsed(target: Target) -> None:
    for path in ("/v1/policies", "/v2/models/model/infer"):
        with target.evidence.strangers_counted(1):
            answer = target.send("POST", path, known=False, body=[HUGE] * 1000)
        refused(answer, 401, "token_missing", inference=path.startswith("/v2"))
        assert answer.asked == 0


# --- tensors ------------------------------------------------------------------------------------------


def infer(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changes
    return json.dumps({"inputs": [tensor]}).encode()


def raw(shape: str = "[1,2]", data: str = "[1,2]", datatype: str = "FP32", rest: str = "") -> bytes:
    return f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]{rest}}}'.encode()


def bomb(size: int) -> bytes:
    deflate = zlib.compressobj(9, wbits=31)
    return b"".join(deflate.compress(bytes(1 << 20)) for _ in range(size >> 20)) + deflate.flush()


GZIP = [(ENCODING, "gzip")]
TENSORS = [
    pytest.param(bomb(4 * MAX_INFER_BYTES), GZIP, 413, "too_large", id="gzip-bomb"),
    pytest.param(gzip.compress(bomb(MAX_INFER_BYTES)), GZIP, 400, "invalid_json", id="gzip-in-gzip"),
    pytest.param(gzip.compress(infer()) + b"x", GZIP, 400, "invalid_gzip", id="gzip-and-more"),
    pytest.param(gzip.compress(infer())[:-1], GZIP, 400, "invalid_gzip", id="gzip-cut"),
    pytest.param(gzip.compress(infer()) * 2, GZIP, 400, "invalid_gzip", id="gzip-twice"),
    pytest.param(infer(), GZIP, 400, "invalid_gzip", id="no-gzip"),
    pytest.param(infer(), [(ENCODING, "gzip, gzip")], 415, "encoding_refused", id="two-encodings"),
    pytest.param(infer(), [(ENCODING, "br")], 415, "encoding_refused", id="brotli"),
    pytest.param(infer(), [("inference-header-content-length", "9" * 99)], 422, "binary_not_supported", id="binary"),
    pytest.param(raw(data="[" * 50_000 + "]" * 50_000), [], 400, "invalid_json", id="depth-bomb"),
    pytest.param(raw(data="[[[[[[[[[1]]]]]]]]]"), [], 400, "invalid_tensor", id="deep"),
    pytest.param(raw(rest=',"inputs":[]'), [], 400, "invalid_json", id="name-twice"),
    pytest.param(raw(rest=',"id":"\\ud800"'), [], 400, "invalid_json", id="half-a-pair"),
    pytest.param(raw(data="[NaN,1]"), [], 400, "invalid_json", id="nan"),
    pytest.param(raw(data="[Infinity,1]"), [], 400, "invalid_json", id="infinity"),
    pytest.param(raw(data="[1e39,1]"), [], 400, "invalid_tensor", id="overflow-of-the-datatype"),
    pytest.param(raw("[4294967296,4294967296]"), [], 400, "invalid_tensor", id="shape-overflows-64-bits"),
    pytest.param(raw("[" + "9" * 300 + "]"), [], 400, "invalid_tensor", id="shape-overflows-anything"),
    pytest.param(raw("[0,9223372036854775807]"), [], 400, "invalid_tensor", id="shape-of-nothing"),
    pytest.param(raw("[-1,2]"), [], 400, "invalid_tensor", id="negative"),
    pytest.param(raw("[-1,-2]"), [], 400, "invalid_tensor", id="negative-pair"),
    pytest.param(raw("[1.0,2]"), [], 400, "invalid_body", id="fractional"),
    pytest.param(raw("[2,2]"), [], 400, "invalid_tensor", id="too-few"),
    pytest.param(raw(data="[[1],[2]]"), [], 400, "invalid_tensor", id="other-nesting"),
    pytest.param(raw(data='["1","2"]'), [], 400, "invalid_tensor", id="text-for-numbers"),
    pytest.param(raw(data="[true,false]"), [], 400, "invalid_tensor", id="bools-for-numbers"),
    pytest.param(raw(data="[1.5,2]", datatype="INT64"), [], 400, "invalid_tensor", id="fractions-for-integers"),
    pytest.param(raw(data="[256,1]", datatype="UINT8"), [], 400, "invalid_tensor", id="outside-the-datatype"),
    pytest.param(raw(datatype="BYTES"), [], 422, "unsupported_datatype", id="bytes"),
    pytest.param(raw(datatype="FP33"), [], 422, "unsupported_datatype", id="unknown-datatype"),
    pytest.param(raw(rest=',"outputs":[{"name":"y"},{"name":"y"}]'), [], 422, "invalid_input", id="output-twice"),
    pytest.param(raw(rest=',"outputs":[{"name":"z"}]'), [], 422, "invalid_output", id="unknown-output"),
    pytest.param(raw(rest=',"parameters":{"timeout_ms":1e9}'), [], 422, "invalid_timeout", id="endless-wait"),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), TENSORS)
def test_tensors(target: Target, body: bytes, headers: list[tuple[str, str]], status: int, code: str) -> None:
    before = target.state()
    answer = target.send("POST", "/v2/models/model/infer", body=[body], headers=headers)
    refused(answer, status, code, inference=True)
    assert target.state() == before
    assert target.logged(answer) == [("denied", code)]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(raw("[1,3]", "[1,2,3]"), id="wrong-shape"),
        pytest.param(raw(datatype="FP64"), id="wrong-datatype"),
        pytest.param(infer(name="z"), id="wrong-name"),
        pytest.param(b'{"inputs":[]}', id="none"),
    ],
)
def test_inputs_that_the_model_does_not_take(target: Target, body: bytes) -> None:
    with target.evidence.nothing_changes():
        answer = target.send("POST", "/v2/models/model/infer", body=[body])
    refused(answer, 422, "invalid_input", inference=True)
    assert [outcome for outcome, _ in target.logged(answer)] == ["failed"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/wide/versions", {"graph": {**GRAPH, "n": 10**30}, "weights_bytes": 1, "weights_sha256": "0" * 64}),
        ("/v1/models/wide/versions", {"graph": GRAPH, "weights_bytes": 10**30, "weights_sha256": "0" * 64}),
        ("/v1/models/wide/versions", {"graph": GRAPH, "weights_bytes": -1, "weights_sha256": "0" * 64}),
        ("/v1/jobs", job(steps=10**30)),
        ("/v1/jobs", job(sample_rate=10**300)),
        ("/v1/jobs", job(optimizer={"name": "sgd", "learning_rate": -(10**30)})),
        (
            "/v1/grants",
            {"kind": "model", "name": "model", "grantee": "globex", "actions": [], "expires_at": 1 << 62},
        ),
    ],
    ids=["graph", "bytes", "negative", "steps", "rate", "nested", "time"],
)
def test_numbers_that_no_database_holds(target: Target, path: str, body: dict[str, Any]) -> None:
    before = target.state()
    answer = target.send("POST", path, body=[json.dumps(body).encode()])
    assert answer.status in {400, 422}
    refused(answer, answer.status, answer.code)
    assert target.state() == before
    assert target.logged(answer) == [("denied", answer.code)]


# --- heads, methods, paths ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/whoami", "/v2/models/model", "/issuer/jwks"])
def test_header_floods(target: Target, path: str) -> None:
    inference = path.startswith("/v2")
    # Too much to look at who asks: a stranger's, and counted as such.
    with target.evidence.strangers_counted(2, 431):
        many = target.send("GET", path, headers=[("x-flood", str(number)) for number in range(MAX_HEADERS + 1)])
        long = target.send("GET", path, headers=[("x-flood", "v" * 40_000)])
    with target.evidence.strangers_counted(1, 414):
        query = target.send("GET", path, query=b"a" * 9000)
    refused(many, 431, "headers_too_large", inference=inference)
    refused(long, 431, "headers_too_large", inference=inference)
    refused(query, 414, "target_too_long", inference=inference)
    assert [target.logged(answer) for answer in (many, long, query)] == [[], [], []]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PATCH", "PROPFIND", "PURGE", "get", "BREW", ""])
@pytest.mark.parametrize("path", ["/v1/models/model", "/v1/policies/check", "/v2/models/model/infer", "/issuer/token"])
def test_unsupported_methods(target: Target, method: str, path: str) -> None:
    # The management API routes before it asks who calls; the data plane looks at the token first.
    known = path.startswith("/v2")
    with target.evidence.strangers_counted(0 if known else 1, 405):
        answer = target.send(method, path)
    refused(answer, 405, "method_not_allowed", inference=known)
    assert method not in answer.headers["allow"].split(", ")
    assert target.logged(answer) == ([("denied", "method_not_allowed")] if known else [])


def exchange(house: House, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes to the real server; return status, headers and body."""
    host, _, port = house.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(65_536)
            if not more:
                break
            received += more
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", "0")):
            body += connection.recv(65_536)
    return int(lines[0].split(" ")[1]), headers, body


PATHS = [
    pytest.param("/v1/models/..", id="dots"),
    pytest.param("/v1/models/../whoami", id="dots-up"),
    pytest.param("/v1/../v1/whoami", id="dots-round"),
    pytest.param("/v1/./whoami", id="dot"),
    pytest.param("/v1/models/%2e%2e", id="encoded-dots"),
    pytest.param("/v1/models/..%2fwhoami", id="encoded-slash"),
    pytest.param("/v1/models/..%5cwhoami", id="backslash"),
    pytest.param("/v1/models/%252e%252e%252fwhoami", id="encoded-twice"),
    pytest.param("/v1/models/%c0%ae%c0%ae", id="overlong-utf-8"),
    pytest.param("/v1/models/%ff%fe", id="not-utf-8"),
    pytest.param("/v1/models/%ed%a0%80", id="half-a-pair"),
    pytest.param("/v1/models/model%00", id="nul"),
    pytest.param("/v1/models/model%0d%0aset-cookie:x=1", id="line-break"),
    pytest.param("/v1/models/%e2%80%aeledom", id="right-to-left"),
    pytest.param("/v1/models/mode%ef%bd%8c", id="full-width"),
    pytest.param("/v1/models/m%cc%81odel", id="combining"),
    pytest.param("/v1/models/MODEL", id="capitals"),
    pytest.param("/v1/models/model%20", id="space"),
    pytest.param("/v1/models/model;x=1", id="matrix-parameter"),
    pytest.param("/v1/models/model/", id="slash-at-the-end"),
    pytest.param("/v1//models/model", id="slash-twice"),
    pytest.param("//evil.test/v1/models", id="another-host"),
    pytest.param("/V1/models", id="capital-prefix"),
    pytest.param("/v1/policies/99999999999999999999", id="huge-number"),
    pytest.param("/v1/policies/-1", id="negative-number"),
    pytest.param("/v1/policies/%d9%a3", id="arabic-digit"),
    pytest.param("/v1/models/model/versions/99999999999999999999", id="huge-version"),
    pytest.param("/v1/models/model/versions/%c2%b2", id="superscript-version"),
    pytest.param("/v1/audit/entries/99999999999999999999/proof", id="huge-index"),
    pytest.param("/v1/audit/entries/0/proof?size=999999999999999", id="huge-size"),
    pytest.param("/v1/audit/entries?cursor=wrI=", id="superscript-cursor"),
    pytest.param("/v1/audit/entries?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", id="huge-cursor"),
    pytest.param("/v1/policies?cursor=wrI=", id="superscript-cursor-of-policies"),
    pytest.param("/v1/policies?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", id="huge-cursor-of-policies"),
    pytest.param("/v1/models/model/versions?cursor=wrI=", id="superscript-cursor-of-versions"),
    pytest.param(
        "/v1/models/model/versions?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5",
        id="huge-cursor-of-versions",
    ),
    pytest.param("/v1/models?limit=1&limit=2", id="parameter-twice"),
    pytest.param("/v1/models?limit=%00", id="nul-parameter"),
    pytest.param("/v2/models/..%2f..%2fv1", id="inference-dots"),
    pytest.param("/v2/models/model%00/ready", id="inference-nul"),
    pytest.param("/v2/models/model/versions/99999999999999999999", id="inference-version"),
    pytest.param("/v2/../v1/whoami", id="from-plane-to-plane"),
    pytest.param("/v2/models//ready", id="inference-no-name"),
]


@pytest.mark.parametrize("path", PATHS)
def test_paths(target: Target, path: str) -> None:
    before = target.state()
    head = f"GET {path} HTTP/1.1\r\nhost: evil.test\r\nauthorization: Bearer {target.token}\r\n\r\n"
    status, headers, body = exchange(target.house, head.encode())
    answer = Answer(status, headers, body, 0)
    assert status in {400, 404, 405, 422}
    refused(answer, status, answer.code, inference=path.startswith("/v2"))
    assert "set-cookie" not in headers
    assert b"evil.test" not in body or "evil.test" in path
    assert target.state() == before
    reason = "not found" if answer.code == "not_found" else answer.code
    assert target.logged(answer) == ([] if reason == "no_such_path" else [("denied", reason)])


KNOWN = b"host: h\r\nauthorization: Bearer TOKEN\r\n"
MALFORMED = [
    pytest.param(b"GET /v1/whoami HTTP/1.1\r\n" + KNOWN + lines + b"\r\n", id=what)
    for what, lines in {
        "two-lengths": b"content-length: 5\r\ncontent-length: 6\r\n",
        "nul-in-header": b"x\x00y: 1\r\n",
        "nul-in-value": b"x: 1\x002\r\n",
        "folded-header": b"x: 1\r\n folded\r\n",
        "space-before-colon": b"x : 1\r\n",
    }.items()
] + [
    pytest.param(b"POST /v1/policies HTTP/1.1\r\n" + KNOWN + lines + b"\r\n" + body, id=what)
    for what, lines, body in (
        ("length-and-chunks", b"content-length: 5\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
        ("chunks-and-length", b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", b"0\r\n\r\n"),
        ("chunks-not-last", b"transfer-encoding: chunked, identity\r\n", b"0\r\n\r\n"),
        ("chunk-of-no-size", b"transfer-encoding: chunked\r\n", b'zz\r\n{"text":""}\r\n0\r\n\r\n'),
    )
]
MALFORMED += [
    pytest.param(b"GET /v1/who\xffami HTTP/1.1\r\n" + KNOWN + b"\r\n", id="raw-byte-in-path"),
    pytest.param(b"GET /v1/whoami HTTP/3.0\r\n" + KNOWN + b"\r\n", id="http-3"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls-to-plain"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="http-2"),
]


@pytest.mark.parametrize("request_", MALFORMED)
def test_bytes_that_are_no_request_are_refused_by_the_server_itself(target: Target, request_: bytes) -> None:
    """With a good token: whatever the parser let through would be answered otherwise."""
    with target.evidence.nothing_changes():
        status, headers, body = exchange(target.house, request_.replace(b"TOKEN", target.token.encode()))
    assert status == 400
    assert headers["connection"] == "close", "what follows is read as no further request"
    assert body == b"Invalid HTTP request received."


def test_a_line_without_a_version_is_a_request_like_any_other(target: Target) -> None:
    """The parser takes HTTP/0.9 and goes on to read a head: so it asks for the token, and ends the connection."""
    with target.evidence.strangers_counted(1):
        status, headers, body = exchange(target.house, b"GET /v1/whoami\r\n\r\n")
    refused(Answer(status, headers, body, 0), 401, "token_missing")
    assert headers["connection"] == "close"
    known = KNOWN.replace(b"TOKEN", target.token.encode())
    with target.evidence.nothing_changes():
        status, headers, body = exchange(target.house, b"GET /v1/whoami\r\n" + known + b"\r\n")
    assert (status, json.loads(body)["tenant"]["slug"]) == (200, "acme")
    assert headers["connection"] == "close"


def test_a_redirect_is_never_given(target: Target) -> None:
    for path in ("/v1/models/", "/v1/whoami/", "/issuer/jwks/", "/v2/"):
        with target.evidence.nothing_changes():
            answer = target.send("GET", path, headers=[("host", "evil.test"), ("x-forwarded-host", "evil.test")])
        assert answer.status == 404
        assert "location" not in answer.headers
