"""Idempotency keys: one effect, one answer; of one principal and one request; never a secret twice."""

from typing import Any

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeLimits, operator_caller, tenant_caller
from fakes.edge import Answer, Edge
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import ConflictError, MalformedError, RateLimitedError, UnavailableError
from modelkeep_platform.http.idempotency import KEEP_S, MAX_KEYS, IdempotencyStore
from modelkeep_platform.http.routing import Call, Endpoint
from modelkeep_platform.storage.database import Database

KEY = "key-0001"


class Effects:
    """Counts how often something was done."""

    def __init__(self) -> None:
        self.count = 0
        self.error: BaseException | None = None

    def run(self) -> tuple[int, bytes]:
        self.count += 1
        if self.error is not None:
            raise self.error
        return 201, f'{{"n":{self.count}}}'.encode()

    def handle(self, call: Call) -> dict[str, Any]:
        self.run()
        return {"n": self.count, "body": call.body}


@pytest.fixture
def effects() -> Effects:
    return Effects()


@pytest.fixture
def store(database: Database, clock: FakeClock) -> IdempotencyStore:
    return IdempotencyStore(database=database, clock=clock, limits=FakeLimits(), max_keys=3)


ALICE = tenant_caller(ACME, name="alice")


def once(store: IdempotencyStore, effects: Effects, caller: Any = ALICE, key: str = KEY, request: bytes = b"r") -> Any:
    return store.once(caller, key, request, effects.run, replayable=True)


def code_of(store: IdempotencyStore, effects: Effects, **changes: Any) -> str:
    with pytest.raises(ConflictError) as caught:
        once(store, effects, **changes)
    return caught.value.error_code


def test_a_repeated_request_has_the_first_ones_answer_and_no_second_effect(
    store: IdempotencyStore, effects: Effects
) -> None:
    assert [once(store, effects) for _ in range(3)] == [(201, b'{"n":1}')] * 3
    assert effects.count == 1


def test_another_request_under_the_same_key_is_refused(store: IdempotencyStore, effects: Effects) -> None:
    once(store, effects)
    assert code_of(store, effects, request=b"other") == "idempotency_mismatch"
    assert effects.count == 1


@pytest.mark.parametrize(
    "other",
    [tenant_caller(GLOBEX, name="alice"), tenant_caller(ACME, name="bob"), operator_caller()],
    ids=["tenant", "principal", "operator"],
)
def test_a_key_is_unknown_to_everybody_else(store: IdempotencyStore, effects: Effects, other: Any) -> None:
    once(store, effects)
    assert once(store, effects, caller=other, request=b"other") == (201, b'{"n":2}')
    assert once(store, effects) == (201, b'{"n":1}')


def test_a_request_that_was_cut_short_is_not_run_again(store: IdempotencyStore, effects: Effects) -> None:
    effects.error = SystemExit()
    with pytest.raises(SystemExit):
        once(store, effects)
    effects.error = None
    assert code_of(store, effects) == "idempotency_unfinished"
    assert code_of(store, effects, request=b"other") == "idempotency_unfinished"
    assert effects.count == 1


def test_neither_is_one_that_the_platform_failed(store: IdempotencyStore, effects: Effects) -> None:
    effects.error = UnavailableError("later")
    with pytest.raises(UnavailableError):
        once(store, effects)
    effects.error = None
    assert code_of(store, effects) == "idempotency_unfinished"


def test_a_request_while_the_first_is_running_is_refused(store: IdempotencyStore, effects: Effects) -> None:
    def run() -> tuple[int, bytes]:
        assert code_of(store, effects) == "idempotency_unfinished"
        return 200, b"{}"

    assert store.once(ALICE, KEY, b"r", run, replayable=True) == (200, b"{}")
    assert effects.count == 0


def test_a_refusal_had_no_effect_and_leaves_the_key_free(store: IdempotencyStore, effects: Effects) -> None:
    effects.error = ConflictError("the name is taken", code="name_taken")
    with pytest.raises(ConflictError):
        once(store, effects)
    effects.error = None
    assert once(store, effects, request=b"corrected") == (201, b'{"n":2}')


def test_an_answer_that_held_a_secret_is_not_kept(
    store: IdempotencyStore, effects: Effects, database: Database
) -> None:
    def run() -> tuple[int, bytes]:
        effects.run()
        return 201, b'{"client_secret":"mks_very_secret"}'

    store.once(ALICE, KEY, b"r", run, replayable=False)
    with pytest.raises(ConflictError) as caught:
        store.once(ALICE, KEY, b"r", run, replayable=False)
    assert caught.value.error_code == "idempotency_secret"
    assert effects.count == 1
    database.close()
    assert database.engine.url.database is not None
    with open(database.engine.url.database, "rb") as file:  # noqa: PTH123
        assert b"mks_very_secret" not in file.read()


@pytest.mark.parametrize(
    "key", ["", "short12", "x" * 129, "with space", "tab\tinside", "nul\0inside", "ümlaut-key", "line\n123"]
)
def test_what_cannot_be_a_key_is_refused(store: IdempotencyStore, effects: Effects, key: str) -> None:
    with pytest.raises(MalformedError) as caught:
        once(store, effects, key=key)
    assert (caught.value.error_code, effects.count) == ("invalid_key", 0)


@pytest.mark.parametrize("key", ["12345678", "!" * 128, "~{}|'\";--\\"])
def test_what_can_be_a_key(store: IdempotencyStore, effects: Effects, key: str) -> None:
    assert once(store, effects, key=key) == (201, b'{"n":1}')


def test_a_key_is_forgotten_after_a_day(store: IdempotencyStore, effects: Effects, clock: FakeClock) -> None:
    once(store, effects)
    clock.advance(KEEP_S)
    once(store, effects)
    assert effects.count == 1
    clock.advance(1)
    once(store, effects)
    assert effects.count == 2


def test_one_account_cannot_fill_the_database_with_keys(
    store: IdempotencyStore, effects: Effects, clock: FakeClock
) -> None:
    for number in range(3):
        once(store, effects, key=f"key-000{number}")
        clock.advance(100)
    with pytest.raises(RateLimitedError) as caught:
        once(store, effects, key="key-0009")
    assert (caught.value.error_code, caught.value.retry_after_s) == ("too_many_keys", KEEP_S - 300)
    assert once(store, effects, caller=tenant_caller(ACME, name="bob")) == (201, b'{"n":4}')
    assert effects.count == 4
    clock.advance(KEEP_S - 299)
    once(store, effects, key="key-0009")
    assert MAX_KEYS == 10_000


# --- over HTTP ----------------------------------------------------------------------------------------


@pytest.fixture
def edge(database: Database, clock: FakeClock, effects: Effects) -> Edge:
    made: dict[str, Any] = {
        "handler": effects.handle,
        "summary": "Do it",
        "body": dict[str, int],
        "returns": dict[str, Any],
    }
    edge = Edge(
        database,
        clock,
        [
            Endpoint(method="POST", path="/v1/things", guard=Action.MODEL_CREATE, status=201, **made),
            Endpoint(method="POST", path="/v1/others", guard=Action.MODEL_CREATE, status=201, **made),
            Endpoint(method="PUT", path="/v1/things", guard=Action.MODEL_CREATE, **made),
            Endpoint(
                method="POST", path="/v1/secrets", guard=Action.MODEL_CREATE, status=201, replayable=False, **made
            ),
        ],
    )
    edge.tokens.callers |= {"a": tenant_caller(ACME), "g": tenant_caller(GLOBEX)}
    return edge


def post(edge: Edge, path: str = "/v1/things", *, token: str = "a", key: str = KEY, body: bytes = b"{}") -> Answer:
    return edge.call("POST", path, token=token, body=[body], headers=[("idempotency-key", key)])


def test_a_repeated_post_is_answered_alike_to_the_byte(edge: Edge, effects: Effects) -> None:
    first, second = post(edge), post(edge)
    assert (first.status, first.body) == (second.status, second.body) == (201, b'{"body":{},"n":1}')
    assert effects.count == 1


def test_path_body_and_method_are_part_of_the_request(edge: Edge) -> None:
    post(edge)
    for answer in (post(edge, "/v1/others"), post(edge, body=b'{"a":1}')):
        assert (answer.status, answer.code) == (409, "idempotency_mismatch")


def test_a_host_header_is_not(edge: Edge, effects: Effects) -> None:
    for host in ("models.test", "[", "evil.test/x", ""):
        answer = edge.call(
            "POST", "/v1/things", token="a", body=[b"{}"], headers=[("idempotency-key", KEY), ("host", host)]
        )
        assert answer.status == 201
    assert effects.count == 1


def test_another_tenants_key_is_its_own(edge: Edge, effects: Effects) -> None:
    post(edge)
    assert post(edge, token="g", body=b'{"a":1}').json() == {"n": 2, "body": {"a": 1}}


def test_a_secret_is_answered_once(edge: Edge, effects: Effects) -> None:
    assert post(edge, "/v1/secrets").status == 201
    assert post(edge, "/v1/secrets").code == "idempotency_secret"
    assert effects.count == 1


def test_a_key_on_another_method_means_nothing(edge: Edge, effects: Effects) -> None:
    for _ in range(2):
        answer = edge.call("PUT", "/v1/things", token="a", body=[b"{}"], headers=[("idempotency-key", "x")])
        assert answer.status == 200
    assert effects.count == 2


@pytest.mark.parametrize("other", [KEY, "another-key-1"])
def test_two_keys_are_refused(edge: Edge, effects: Effects, other: str) -> None:
    two = [("idempotency-key", KEY), ("idempotency-key", other)]
    answer = edge.call("POST", "/v1/things", token="a", body=[b"{}"], headers=two)
    assert (answer.status, answer.code, effects.count) == (400, "invalid_key", 0)


def test_a_bad_body_does_not_use_the_key(edge: Edge, effects: Effects) -> None:
    assert post(edge, body=b"{").status == 400
    assert post(edge).status == 201
