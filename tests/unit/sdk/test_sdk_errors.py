"""Typed errors: which answer becomes which, and what they show."""

import pytest

from modelkeep import errors
from modelkeep._core.answers import error_of
from modelkeep._core.flows import Response

JSON = {"content-type": "application/json"}


def envelope(code: str, *, details: str = "{}") -> bytes:
    text = f'{{"error":{{"code":"{code}","message":"no","request_id":"req-9","details":{details}}}}}'
    return text.encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "malformed", errors.InvalidRequestError),
        (401, "unauthenticated", errors.AuthenticationError),
        (403, "forbidden", errors.ForbiddenError),
        (404, "not_found", errors.NotFoundError),
        (405, "method_not_allowed", errors.InvalidRequestError),
        (408, "body_timeout", errors.ServerError),
        (409, "conflict", errors.ConflictError),
        (409, "budget_exceeded", errors.BudgetExceededError),
        (413, "too_large", errors.InvalidRequestError),
        (415, "encoding_refused", errors.InvalidRequestError),
        (422, "unprocessable", errors.InvalidRequestError),
        (429, "rate_limited", errors.RateLimitedError),
        (500, "internal", errors.ServerError),
        (503, "unavailable", errors.ServerError),
        (504, "deadline_exceeded", errors.ServerError),
    ],
)
def test_status_and_code_become_a_type(status: int, code: str, kind: type[errors.APIError]) -> None:
    error = error_of(Response(status=status, headers=JSON, body=envelope(code)))
    assert type(error) is kind
    assert (error.code, error.message, error.request_id, error.status) == (code, "no", "req-9", status)
    assert str(error) == f"no ({code}, request req-9)"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"error":null}', b'{"error":{"code":1,"message":[],"details":3}}', b"{" * 1000],
)
def test_a_broken_body_still_gives_the_type(body: bytes) -> None:
    error = error_of(Response(status=502, headers={**JSON, "x-request-id": "req-7"}, body=body))
    assert isinstance(error, errors.ServerError)
    assert (error.code, error.status, error.request_id) == ("internal", 502, "req-7")


def test_the_data_planes_string_becomes_the_message() -> None:
    headers = {**JSON, "x-error-code": "not_found", "x-request-id": "req-8"}
    error = error_of(Response(status=404, headers=headers, body=b'{"error":"there is no such object"}'))
    assert isinstance(error, errors.NotFoundError)
    assert (error.code, error.message, error.request_id) == ("not_found", "there is no such object", "req-8")


def test_reasons_and_policies_of_a_refusal() -> None:
    body = envelope("forbidden", details='{"reasons":["policy `x` forbids it"],"policies":["x"]}')
    error = error_of(Response(status=403, headers=JSON, body=body))
    assert isinstance(error, errors.ForbiddenError)
    assert (error.reasons, error.policies) == (("policy `x` forbids it",), ("x",))


@pytest.mark.parametrize(
    ("details", "largest"),
    [('{"largest_epsilon":0.5}', 0.5), ("{}", None), ('{"largest_epsilon":true}', None)],
)
def test_the_largest_epsilon(details: str, largest: float | None) -> None:
    error = error_of(Response(status=409, headers=JSON, body=envelope("budget_exceeded", details=details)))
    assert isinstance(error, errors.BudgetExceededError)
    assert error.largest_epsilon == largest


def test_every_error_is_drawn_in_the_docs() -> None:
    drawn = errors.__doc__ or ""

    def walk(kind: type[errors.ModelkeepError]) -> None:
        assert kind.__name__ in drawn
        for one in kind.__subclasses__():
            if one.__module__ == errors.__name__:
                walk(one)

    walk(errors.ModelkeepError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ε ✓", "plain ε ✓"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("two\nlines\tand\rreturn", "two lines andreturn"),
        ("\u202eright to left\u2066", "right to left"),
        ("bell\x07\x9b2J", "bell2J"),
        ("x" * 3000, "x" * 1999 + "…"),
    ],
    ids=["plain", "colour", "lines", "bidi", "c1", "long"],
)
def test_text_of_a_server_cannot_steer_a_terminal(text: str, shown: str) -> None:
    assert errors.printable(text) == shown
    assert errors.APIError(text, code="c", status=400).message == shown
