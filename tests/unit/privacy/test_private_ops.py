"""The graph-level check: which operations a private job may contain."""

import pytest

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.ops import ALTERNATIVES, PRIVATE_LAYERS, check_private_ops


def test_allowed_layers_and_operations_without_parameters_pass() -> None:
    check_private_ops([(f"n{place}", operation) for place, operation in enumerate(sorted(PRIVATE_LAYERS))])
    check_private_ops([("a", "relu"), ("b", "dropout"), ("c", "max_pool2d"), ("d", "flatten"), ("e", "affine")])
    check_private_ops([])


REFUSED = [
    "batch_norm1d",
    "batch_norm2d",
    "rnn",
    "lstm",
    "gru",
    "multihead_attention",
    "transformer_encoder_layer",
    "transformer_encoder",
]


@pytest.mark.parametrize("operation", REFUSED)
def test_every_other_layer_is_refused_by_name_with_the_alternative(operation: str) -> None:
    with pytest.raises(UnprocessableError) as raised:
        check_private_ops([("first", "linear"), ("second", operation), ("third", operation)])
    assert raised.value.error_code == "layer_not_private"
    assert raised.value.details == {
        "node": "second",
        "operation": operation,
        "alternative": ALTERNATIVES[operation],
    }
    assert f"`second` is a `{operation}` layer" in raised.value.message
    assert ALTERNATIVES[operation] in raised.value.message


def test_alternatives_are_themselves_allowed() -> None:
    named = {word.strip("`,;") for text in ALTERNATIVES.values() for word in text.split() if word.startswith("`")}
    assert named <= PRIVATE_LAYERS
