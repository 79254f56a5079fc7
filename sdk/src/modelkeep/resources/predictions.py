"""Predictions over the Open Inference Protocol, and who one is: the operations of the client itself."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from typing import Any, Final, TypeAlias

from modelkeep._core import inference
from modelkeep._core.flows import MIB, Flow, Mode, Operation, Runner
from modelkeep._core.session import Session
from modelkeep._core.site import Interactive, Kept
from modelkeep.errors import ConfigurationError, ForbiddenError, InvalidRequestError
from modelkeep.resources.base import Resource
from modelkeep.types import TenantDetails, WhoAmI

_MAX_OUTPUT_BYTES: Final = 64 * MIB
_CACHED: Final = 256
_CACHE_S: Final = 60.0
_Inputs: TypeAlias = tuple[inference.TensorMetadata, ...] | None


class Predictions(Resource[Mode]):
    """What the client itself does: predict, and say who the caller is and what its tenant may have.

    Args:
        session: sends calls.
        runner: performs flows.
    """

    def __init__(self, *, session: Session, runner: Runner) -> None:
        super().__init__(session=session, runner=runner)
        self._inputs: OrderedDict[tuple[str, str], tuple[float, _Inputs]] = OrderedDict()

    @Operation
    def whoami(self) -> Flow[WhoAmI]:
        """Say who the caller is, as the platform sees it."""
        return (yield from self._session.get(WhoAmI, "v1", "whoami"))

    @Operation
    def tenant(self) -> Flow[TenantDetails]:
        """Show the own tenant: its limits and what is used of them."""
        return (yield from self._session.get(TenantDetails, "v1", "tenant"))

    @Operation
    def login(self) -> Flow[WhoAmI]:
        """Log in anew, whatever token is kept, and say who one is.

        Raises:
            ConfigurationError: this client's way of logging in has no login of its own.
            AuthenticationError: the login was refused.
        """
        auth = self._session.auth
        if not isinstance(auth, Interactive):
            raise ConfigurationError("a token that comes from elsewhere has no login; use it as it is")
        yield from auth.login(self._session.site)
        return (yield from self._session.get(WhoAmI, "v1", "whoami"))

    @Operation
    def logout(self) -> Flow[bool]:
        """Forget the kept tokens, here and at the issuer; return whether there were any."""
        auth = self._session.auth
        if not isinstance(auth, Kept):
            raise ConfigurationError("only a person's login keeps tokens; there is nothing to forget")
        return (yield from auth.logout(self._session.site))

    @Operation
    def predict(self, model: str, inputs: Any, *, version: int | str | None = None) -> Flow[Any]:  # noqa: ANN401
        """Predict.

        Args:
            model: a name, or ``owner~name`` for a model another tenant granted.
            inputs: an array or nested lists for a model with one input, a mapping from names for several. With one
                dimension less than the model's input it is a single row, and so is the answer.
            version: a number or an alias; by default the alias ``production``, else the newest version.

        Returns:
            The output, or a dictionary of several outputs: numpy arrays where numpy went in, else nested lists.

        Raises:
            ConfigurationError: the inputs do not fit the model; nothing was sent.
            ForbiddenError: the caller may not; `reasons` say why.
        """
        key = (model, "" if version is None else str(version))
        expected, known = yield from self._expected(key)
        try:
            return (yield from self._infer(key, inputs, expected))
        except InvalidRequestError:
            # A new version may take other inputs: look again, once, before the refusal is passed on.
            if not known:
                raise
            self._inputs.pop(key, None)
            anew, _ = yield from self._expected(key)
            if anew == expected:
                raise
        return (yield from self._infer(key, inputs, anew))

    def _infer(self, key: tuple[str, str], inputs: object, expected: _Inputs) -> Flow[Any]:
        request_id = uuid.uuid4().hex
        prepared = (
            inference.guess(inputs, request_id=request_id)
            if expected is None
            else inference.prepare(inputs, expected, request_id=request_id)
        )
        answer = yield from self._session.json(
            "POST", *_path(key), "infer", body=prepared.body, keyed=False, max_bytes=_MAX_OUTPUT_BYTES
        )
        return inference.outputs_of(answer, prepared, model=key[0], version=key[1])

    def _expected(self, key: tuple[str, str]) -> Flow[tuple[_Inputs, bool]]:
        """Return the model's inputs, and whether they were known already; None when only predicting is allowed."""
        now_s = self._session.site.now_s()
        known = self._inputs.get(key)
        if known is not None and known[0] > now_s:
            return known[1], True
        try:
            found: _Inputs = inference.metadata_of((yield from self._session.json("GET", *_path(key))), key[0])
        except ForbiddenError:
            found = None
        self._inputs[key] = (now_s + _CACHE_S, found)
        while len(self._inputs) > _CACHED:
            self._inputs.popitem(last=False)
        return found, False


def _path(key: tuple[str, str]) -> tuple[str, ...]:
    model, version = key
    return ("v2", "models", model) if not version else ("v2", "models", model, "versions", version)
