"""Which operations a graph may contain when it is trained privately; decided without torch.

Per-sample gradients need layers that treat each record by itself. What couples the records of a batch (batch
normalisation) breaks the guarantee; recurrent and attention layers have no per-sample rule yet. Operations without
parameters pass here; that they do not mix records is checked in the worker, on the built module (`engine_batch`).
"""

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from modelkeep_platform.core.errors import UnprocessableError

PRIVATE_LAYERS: Final = frozenset({"linear", "conv1d", "conv2d", "embedding", "group_norm", "layer_norm"})
"""Layers with parameters that a private job may train."""

_GROUP_NORM: Final = "use `group_norm` or `layer_norm`, which look at one record at a time"
_CONVOLUTION: Final = "use `conv1d` over the sequence, or `embedding` and `linear`"
_WINDOW: Final = "use `conv1d` layers over the sequence, with `layer_norm`"

ALTERNATIVES: Final = MappingProxyType(
    {
        "batch_norm1d": _GROUP_NORM,
        "batch_norm2d": _GROUP_NORM,
        "batch_norm3d": _GROUP_NORM,
        "instance_norm1d": _GROUP_NORM,
        "instance_norm2d": _GROUP_NORM,
        "rnn": _CONVOLUTION,
        "lstm": _CONVOLUTION,
        "gru": _CONVOLUTION,
        "multihead_attention": _WINDOW,
        "transformer_encoder_layer": _WINDOW,
        "transformer_encoder": _WINDOW,
    }
)
"""Layers that a private job refuses, and what to use instead."""


def check_private_ops(ops: Iterable[tuple[str, str]]) -> None:
    """Refuse a graph with a layer that cannot be trained privately.

    Args:
        ops: pairs of node id and operation name.

    Raises:
        UnprocessableError: code ``layer_not_private``; ``details`` has ``node``, ``operation``, ``alternative``
            of the first such node.
    """
    for node, operation in ops:
        if operation in ALTERNATIVES:
            raise not_private(node, operation, ALTERNATIVES[operation])


def not_private(node: str, operation: str, alternative: str) -> UnprocessableError:
    """Make the refusal of one layer."""
    return UnprocessableError(
        f"`{node[:80]}` is a `{operation[:80]}` layer, which cannot be trained privately; {alternative}",
        code="layer_not_private",
        details={"node": node[:80], "operation": operation[:80], "alternative": alternative},
    )
