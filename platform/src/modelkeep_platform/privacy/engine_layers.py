"""Layers that can be trained privately, and their per-sample gradient rules, which are Opacus'. Worker only.

Opacus is loaded without its top-level package: that one imports accountants, optimizers and a privacy engine that
are not used here, and costs seconds at the start of each job.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Final

import torch
from torch import nn

from modelkeep_platform.privacy.engine_sums import Rule
from modelkeep_platform.privacy.ops import ALTERNATIVES, not_private

LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.GroupNorm, nn.LayerNorm)

_COUPLING: Final[tuple[tuple[type[nn.Module], str], ...]] = (
    (nn.BatchNorm1d, "batch_norm1d"),
    (nn.BatchNorm2d, "batch_norm2d"),
    (nn.BatchNorm3d, "batch_norm3d"),
    (nn.InstanceNorm1d, "instance_norm1d"),
    (nn.InstanceNorm2d, "instance_norm2d"),
    (nn.RNN, "rnn"),
    (nn.LSTM, "lstm"),
    (nn.GRU, "gru"),
    (nn.MultiheadAttention, "multihead_attention"),
    (nn.TransformerEncoderLayer, "transformer_encoder_layer"),
    (nn.TransformerEncoder, "transformer_encoder"),
)
_OTHER: Final = "use `linear`, `conv1d`, `conv2d`, `embedding`, `group_norm` or `layer_norm`"


def rules() -> Mapping[type[nn.Module], Rule]:
    """Return the rule of each layer in `LAYERS`."""
    known = _opacus_rules()
    return {**{layer: known[layer] for layer in LAYERS}, nn.Embedding: _embedding(known[nn.Embedding])}


def private_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of `module` that have parameters to train, after checking all of it.

    Raises:
        UnprocessableError: code ``layer_not_private``: a layer that couples records, has no rule, or is set up
            in a way its rule does not cover; named, with the alternative.
    """
    for name, layer in module.named_modules():
        operation = next((stem for kind, stem in _COUPLING if isinstance(layer, kind)), None)
        if operation is not None:
            raise not_private(name or operation, operation, ALTERNATIVES[operation])
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        if type(layer) not in LAYERS:
            raise not_private(name or "module", type(layer).__name__, _OTHER)
        alternative = _unsupported_setting(layer)
        if alternative is not None:
            raise not_private(name or "module", type(layer).__name__, alternative)
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            yield name, layer


def _unsupported_setting(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
        return "use `padding_mode` zeros"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return "leave out `max_norm`, `scale_grad_by_freq` and `sparse`"
    if isinstance(layer, nn.LayerNorm) and getattr(layer, "bias", None) is None:
        return "keep its `bias`"
    return None


def _embedding(rule: Rule) -> Rule:
    def without_padding(
        layer: nn.Embedding, inputs: list[torch.Tensor], gradients: torch.Tensor
    ) -> Mapping[nn.Parameter, torch.Tensor]:
        found = rule(layer, inputs, gradients)
        if layer.padding_idx is not None:
            for samples in found.values():
                samples[:, layer.padding_idx] = 0.0
        return found

    return without_padding


def _opacus_rules() -> Mapping[type[nn.Module], Rule]:
    loaded = sys.modules.get("opacus")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    if loaded is None:
        spec = importlib.util.find_spec("opacus")
        bare = ModuleType("opacus")
        bare.__path__ = list(spec.submodule_search_locations or ()) if spec is not None else []
        sys.modules["opacus"] = bare
    try:
        hooks = importlib.import_module("opacus.grad_sample.grad_sample_module").GradSampleHooks
        importlib.import_module("opacus.grad_sample")
    finally:
        if loaded is None:
            del sys.modules["opacus"]
        # Opacus configures the root logger when it is imported; a library may not.
        root.handlers[:] = handlers
        root.setLevel(level)
    found: Mapping[type[nn.Module], Rule] = hooks.GRAD_SAMPLERS
    return found
