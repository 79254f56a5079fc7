"""Retries: what is repeated, how long is waited, and what is not repeated; errors are mapped."""

import datetime as dt
import ssl
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.sdk import FakeTime, fake_client
from fakes.server import Chunks, FakePlatform, answer_json, refusal
from modelkeep import errors
from modelkeep._core.drivers import mapped
from modelkeep._core.flows import Sync
from modelkeep.auth import StaticToken
from modelkeep.client import Nouns
from modelkeep.enrolment import Enrolments


@pytest.fixture
def client(platform: FakePlatform, folder: Path, time: FakeTime) -> Iterator[Nouns[Sync]]:
    token = platform.issue(renewable=False)["access_token"]
    with fake_client(platform, folder, time, auth=StaticToken(token)) as client:
        yield client


class Failing:
    """Answers, or raises, a number of times; then lets requests through."""

    def __init__(self, *outcomes: httpx.Response | type[httpx.TransportError]) -> None:
        self.outcomes = list(outcomes)

    def __call__(self, request: httpx.Request) -> httpx.Response | None:
        if not self.outcomes:
            return None
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, type):
            raise outcome("failed", request=request)
        return outcome


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_read_is_repeated(client: Nouns[Sync], platform: FakePlatform, time: FakeTime, status: int) -> None:
    platform.before.append(Failing(refusal(status, "busy"), refusal(status, "busy")))
    assert client.whoami().name == "app"
    assert time.waits == [0.25, 0.5]


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError, httpx.PoolTimeout]
)
def test_a_broken_connection_is_repeated(
    client: Nouns[Sync], platform: FakePlatform, time: FakeTime, error: type[httpx.TransportError]
) -> None:
    platform.before.append(Failing(error, error, error))
    assert client.whoami().name == "app"
    assert time.waits == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 501])
def test_other_refusals_are_not_repeated(
    client: Nouns[Sync], platform: FakePlatform, time: FakeTime, status: int
) -> None:
    platform.before.append(Failing(refusal(status, "no")))
    with pytest.raises(errors.APIError):
        client.whoami()
    assert (len(platform.requests), time.waits) == (1, [])


def test_repeating_ends(client: Nouns[Sync], platform: FakePlatform, time: FakeTime) -> None:
    platform.before.append(lambda _: refusal(503, "unavailable"))
    with pytest.raises(errors.ServerError) as caught:
        client.whoami()
    assert (caught.value.code, caught.value.status) == ("unavailable", 503)
    assert (len(platform.requests), time.waits) == (5, [0.25, 0.5, 1.0, 2.0])


def test_no_retries(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    platform.before.append(lambda _: refusal(503, "unavailable"))
    with (
        fake_client(platform, folder, time, auth=StaticToken("t"), retries=0) as client,
        pytest.raises(errors.ServerError),
    ):
        client.whoami()
    assert len(platform.requests) == 1


@pytest.mark.parametrize(("value", "wait"), [("7", 7.25), ("0", 0.25)])
def test_retry_after_is_honoured(
    client: Nouns[Sync], platform: FakePlatform, time: FakeTime, value: str, wait: float
) -> None:
    platform.before.append(Failing(refusal(429, "rate_limited", headers={"retry-after": value})))
    client.whoami()
    assert time.waits == [wait]


def test_retry_after_may_be_a_date(client: Nouns[Sync], platform: FakePlatform, time: FakeTime) -> None:
    date = format_datetime(dt.datetime.fromtimestamp(time.now + 20, dt.UTC), usegmt=True)
    platform.before.append(Failing(refusal(503, "unavailable", headers={"retry-after": date})))
    client.whoami()
    assert time.waits == [20.25]


def test_a_long_retry_after_is_told_instead_of_waited(
    client: Nouns[Sync], platform: FakePlatform, time: FakeTime
) -> None:
    platform.before.append(Failing(refusal(429, "rate_limited", headers={"retry-after": "61"})))
    with pytest.raises(errors.RateLimitedError) as caught:
        client.whoami()
    assert (caught.value.retry_after_s, time.waits) == (61.0, [])


def test_a_post_keeps_its_key_through_all_attempts(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(Failing(httpx.ReadError, refusal(503, "unavailable")))
    client.datasets.upload_csv("rows", b"a\n1\n", schema={}, privacy={})
    keys = {request.headers["idempotency-key"] for request in platform.sent("POST", "/v1/datasets")}
    assert (len(keys), len(platform.sent("POST", "/v1/datasets"))) == (1, 3)


def test_calls_have_different_keys(client: Nouns[Sync], platform: FakePlatform) -> None:
    for name in ("one", "two"):
        client.datasets.upload_csv(name, b"a\n1\n", schema={}, privacy={})
    keys = {request.headers["idempotency-key"] for request in platform.requests if request.method == "POST"}
    assert len(keys) == 4


def test_a_post_that_failed_inside_is_not_repeated(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(lambda _: refusal(500, "internal"))
    with pytest.raises(errors.ServerError):
        client.policies.publish("permit")
    assert len(platform.requests) == 1


def test_our_own_unfinished_attempt_is_waited_for(client: Nouns[Sync], platform: FakePlatform, time: FakeTime) -> None:
    made = {"version": 1, "state": "active", "created_at": 1, "created_by": "p", "sha256": "0"}
    unfinished = refusal(409, "idempotency_unfinished")
    platform.before.append(Failing(httpx.ReadTimeout, unfinished, unfinished, answer_json(made)))
    assert client.policies.publish("permit").version == 1
    assert time.waits == [0.25, 0.5, 1.0]


def test_an_unfinished_attempt_shows_the_first_failure(client: Nouns[Sync], platform: FakePlatform) -> None:
    unfinished = refusal(409, "idempotency_unfinished")
    platform.before.append(Failing(refusal(503, "unavailable"), *[unfinished] * 4))
    with pytest.raises(errors.ServerError) as caught:
        client.policies.publish("permit")
    assert caught.value.code == "unavailable"


def test_anothers_unfinished_request_is_a_conflict(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(Failing(refusal(409, "idempotency_unfinished")))
    with pytest.raises(errors.ConflictError):
        client.policies.publish("permit")
    assert len(platform.requests) == 1


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [
        (httpx.ConnectError, 5),
        (httpx.ReadTimeout, 1),
        (refusal(503, "unavailable"), 5),
        (refusal(502, "gateway"), 1),
    ],
    ids=["not-reached", "in-doubt", "refused", "in-between"],
)
def test_a_one_time_link_is_sent_again_only_when_it_was_not_used(
    client: Nouns[Sync], platform: FakePlatform, outcome: Any, attempts: int
) -> None:
    platform.before.append(Failing(*[outcome] * 5))
    enrolments: Enrolments[Sync] = Enrolments(session=client._session, runner=client._runner)
    with pytest.raises(errors.ModelkeepError):
        enrolments.use("link-1", username="ana", password="twelve letters")
    assert len(platform.requests) == attempts


def test_a_weights_download_begins_anew(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.add_model("m", weights=b"0123456789")
    broken = [True]

    def half(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("/weights") or not broken:
            return None
        broken.clear()

        def chunks() -> Iterator[bytes]:
            yield b"01234"
            raise httpx.ReadError("gone", request=request)

        return httpx.Response(200, headers={"content-type": "application/octet-stream"}, stream=Chunks(chunks()))

    platform.before.append(half)
    assert client.models.download("m").weights == b"0123456789"


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind} | {more for one in kind.__subclasses__() for more in subclasses(one)}


@pytest.mark.parametrize("kind", sorted(subclasses(httpx.HTTPError), key=str))
def test_every_error_of_the_http_library_is_mapped(kind: type[Exception]) -> None:
    request = httpx.Request("GET", "https://models.test")
    if issubclass(kind, httpx.HTTPStatusError):
        error: Exception = httpx.HTTPStatusError("secret", request=request, response=httpx.Response(500))
    elif kind is httpx.HTTPError:
        error = httpx.HTTPError("secret")
    else:
        error = kind("secret", request=request)  # type: ignore[call-arg]
    found = mapped(error)
    assert isinstance(found, errors.ConnectionFailedError | errors.ProtocolError)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("kind", "wanted", "sent"),
    [
        (httpx.ConnectTimeout, errors.TimeoutError, False),
        (httpx.PoolTimeout, errors.TimeoutError, False),
        (httpx.ReadTimeout, errors.TimeoutError, True),
        (httpx.WriteTimeout, errors.TimeoutError, True),
        (httpx.ConnectError, errors.ConnectionFailedError, False),
        (httpx.ProxyError, errors.ConnectionFailedError, False),
        (httpx.ReadError, errors.ConnectionFailedError, True),
        (httpx.RemoteProtocolError, errors.ConnectionFailedError, True),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_kind_of_failure_is_kept(
    kind: type[httpx.TransportError], wanted: type[errors.ConnectionFailedError], sent: bool
) -> None:
    found = mapped(kind("x"))
    assert type(found) is wanted
    assert isinstance(found, errors.ConnectionFailedError)
    assert found.sent is sent


def test_a_bad_certificate_is_named() -> None:
    error = httpx.ConnectError("x")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed")
    assert "certificate does not verify" in str(mapped(error))


def test_a_timeout_is_the_builtin_one() -> None:
    assert issubclass(errors.TimeoutError, TimeoutError)


def test_a_closed_client_says_so(client: Nouns[Sync]) -> None:
    client._runner.close()  # type: ignore[attr-defined]
    with pytest.raises(errors.ModelkeepError, match="closed"):
        client.whoami()
