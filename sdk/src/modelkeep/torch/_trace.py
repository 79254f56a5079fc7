"""Traces a module into a graph: symbolically by torch.fx, with shapes from runs on the example.

Control flow on values, layers and functions outside the closed list are refused by naming the layer or the source
line and what to do. What was traced is built again and compared with the module on the example before it is given out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import safetensors.torch
import torch
from torch import fx, nn

from modelkeep.errors import TraceError
from modelkeep.torch._build import GraphModule
from modelkeep.torch._functions import ALTERNATIVES, FUNCTIONS, NAMED, Emit, Outcome, Value
from modelkeep.torch._graph import FORMAT, dtype_name
from modelkeep.torch._layers import UnsupportedError, is_layer, layer_of

_RECURRENT: Final = frozenset({"rnn", "lstm", "gru"})
_ENCODERS: Final = frozenset({"transformer_encoder", "transformer_encoder_layer"})
_TOLERANCE: Final = 1e-4
_STATE: Final = 1


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced module, ready for `client.models.upload` and for the `model` of a job.

    Attributes:
        graph: the description, JSON-ready.
        weights: every parameter and buffer, as safetensors.
    """

    graph: dict[str, Any]
    weights: bytes = field(repr=False)


def trace(
    module: nn.Module,
    *example: torch.Tensor,
    varying: Sequence[int] = (0,),
    copy_shared: bool = False,
) -> Traced:
    """Describe `module` as a graph.

    Args:
        module: any module made of the layers and functions that graphs have; it is not changed.
        example: one tensor for each argument of its `forward`, of the right dtype and shape; rows may be zeros.
        varying: the dimensions of the inputs whose size may differ from the example's; by default the batch.
        copy_shared: whether a layer that is used twice becomes two layers with equal weights.

    Returns:
        The graph and its weights, in evaluation mode: what the platform serves.

    Raises:
        TraceError: a layer, call or shape has no description; the message names it, where it stands, and what to do.
    """
    if is_layer(module) and len(example) == 1:
        module = nn.Sequential(module)  # a layer by itself; symbolic tracing would look inside it
    with _evaluating(module):
        return _Translator(module, example, tuple(varying), copy_shared=copy_shared).traced()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in modes.items():
            child.training = training


class _Tracer(fx.Tracer):
    """Stops at layers that have an operation, or are known to have none; notes the source line of each call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether `m` is one node."""
        if is_layer(m):
            return True
        # Layers of torch that are no composition are named in the refusal; functions they call would not be.
        opaque = type(m).__module__.startswith("torch.nn.modules") and type(m).__name__ in _OPAQUE
        return opaque or (
            super().is_leaf_module(m, module_qualified_name) and any(True for _ in m.parameters(recurse=False))
        )

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401 -- fx's own signature
        """Note where the call stands."""
        node = super().create_node(*args, **kwargs)
        node.meta["place"] = _place(sys._getframe(1))  # noqa: SLF001 -- the caller's line is the point
        return node


_OPAQUE: Final = frozenset(
    {"AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "LSTMCell", "GRUCell", "RNNCell", "Transformer", "TransformerDecoder"}
    | {"TransformerDecoderLayer", "InstanceNorm1d", "InstanceNorm2d", "Dropout1d", "Dropout2d", "AlphaDropout"}
)


def _place(frame: Any) -> str:  # noqa: ANN401 -- a frame
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "modelkeep.")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class _Recorder(fx.Interpreter):
    """Runs a traced module and keeps what every node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 -- whatever the node gives
        """Run and keep."""
        self.values[n] = super().run_node(n)
        return self.values[n]


@dataclass(slots=True)
class _Node:
    """An operation under way into the graph; `params` are roles to names in the weights."""

    op: str
    inputs: list[str]
    attrs: dict[str, Any]
    params: dict[str, str] = field(default_factory=dict)


class _Translator:
    def __init__(
        self, module: nn.Module, example: Sequence[torch.Tensor], varying: tuple[int, ...], *, copy_shared: bool
    ) -> None:
        _check_example(example)
        self._module = module
        self._example = tuple(example)
        self._copy_shared = copy_shared
        graph = _symbolic(module)
        self._fx = fx.GraphModule(module, graph)
        self._runs = [_run(self._fx, example)]
        self._runs += [_varied(self._fx, example, dim) for dim in varying]
        self._nodes: dict[str, _Node | TraceError] = {}
        self._aliases: dict[fx.Node, Value] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._owners: dict[int, str] = {}

    def traced(self) -> Traced:
        inputs: list[dict[str, Any]] = []
        outputs: list[dict[str, Any]] = []
        for node in self._fx.graph.nodes:
            if node.op == "placeholder":
                if node.args:
                    raise TraceError(f"the argument `{node.target}` of `forward` has a default; pass an example for it")
                name = str(node.target)
                self._aliases[node] = self._value(node, name)
                inputs.append(self._described(node, name))
            elif node.op == "output":
                outputs = self._outputs(node.args[0])
            elif self._is_tensor(node) and node.op != "get_attr":
                self._translate(node)
        kept = self._kept([output["node"] for output in outputs])
        graph = {
            "format": FORMAT,
            "inputs": inputs,
            "nodes": [
                {"id": name, "op": node.op, "inputs": node.inputs, "attrs": node.attrs, "params": node.params}
                for name, node in kept
            ],
            "outputs": outputs,
        }
        names = [name for _, node in kept for name in node.params.values()]
        weights = {name: self._tensors[name].detach().cpu().clone().contiguous() for name in names}
        self._compare(graph, weights)
        return Traced(graph, safetensors.torch.save(weights))

    def _kept(self, wanted: list[str]) -> list[tuple[str, _Node]]:
        """Return what the outputs need, in order; a refusal counts only where its result is needed."""
        needed = set(wanted)
        found: list[tuple[str, _Node]] = []
        for name, node in reversed(self._nodes.items()):
            if name not in needed:
                continue
            if isinstance(node, TraceError):
                raise node
            needed.update(node.inputs)
            found.append((name, node))
        if not found:
            raise TraceError("the module gives its inputs back; there is nothing to describe")
        return found[::-1]

    def _translate(self, node: fx.Node) -> None:
        # INVARIANT: a name stands for the value even when its translation failed; `_kept` raises if it is needed.
        self._aliases[node] = self._value(node, node.name)
        try:
            outcome = self._outcome(node)
        except UnsupportedError as exc:
            self._nodes[node.name] = self._refusal(node, str(exc))
            return
        if isinstance(outcome, Value):
            self._aliases[node] = outcome
        elif node.name not in self._nodes:
            self._nodes[node.name] = _Node(outcome.op, [value.name for value in outcome.inputs], dict(outcome.attrs))

    def _outcome(self, node: fx.Node) -> Outcome:
        if node.op == "call_module":
            return self._layer(node)
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
            return self._item(node)
        name = _function_name(node)
        handler = FUNCTIONS.get(name)
        if name == "to" and self._keeps_dtype(node):
            handler = FUNCTIONS["identity"]
        if handler is None:
            raise UnsupportedError(ALTERNATIVES.get(name, "use one of the functions in the reference"))
        args = [self._argument(argument) for argument in node.args]
        kwargs = {key: self._argument(value) for key, value in node.kwargs.items()}
        if "input" in kwargs and not args:
            args = [kwargs.pop("input")]
        try:
            return handler(_ShapeOf(self, node), *args, **kwargs)
        except (TypeError, AttributeError) as exc:
            raise UnsupportedError("it is called with arguments that a graph cannot hold") from exc

    def _layer(self, node: fx.Node) -> Outcome:
        path = str(node.target)
        module = self._module.get_submodule(path)
        layer = layer_of(module)
        arguments = [self._argument(argument) for argument in node.args]
        named = {key: self._argument(value) for key, value in node.kwargs.items()}
        attrs = dict(layer.attrs)
        inputs = [value for value in arguments if isinstance(value, Value)]
        if layer.op == "multihead_attention":
            inputs = _attention_inputs(arguments, named)
            attrs["causal"] = self._is_causal(named.get("attn_mask", _at(arguments, 5)))
            _refuse_given(named, "key_padding_mask", _at(arguments, 3))
        elif layer.op in _ENCODERS:
            mask = named.get("mask", named.get("src_mask", _at(arguments, 1)))
            attrs["causal"] = self._is_causal(mask)
            _refuse_given(named, "src_key_padding_mask", _at(arguments, 2))
            inputs = inputs[:1]
        elif len(inputs) != 1 or len(arguments) != 1 or named:
            what = "start it without a state" if layer.op in _RECURRENT else "give it one tensor"
            raise UnsupportedError(what)
        self._nodes[node.name] = _Node(
            layer.op, [value.name for value in inputs], attrs, self._own_parameters(path, module, node)
        )
        return self._aliases[node]

    def _own_parameters(self, path: str, module: nn.Module, node: fx.Node) -> dict[str, str]:
        params: dict[str, str] = {}
        for role, tensor in module.state_dict(keep_vars=True).items():
            name = f"{path}.{role}"
            owner = self._owners.setdefault(id(tensor), f"{node.name}:{name}")
            if owner != f"{node.name}:{name}":
                if not self._copy_shared:
                    raise UnsupportedError(
                        f"its `{role}` is used elsewhere too ({owner.partition(':')[2]}); give it weights of its own, "
                        "or pass `copy_shared=True` to `trace`"
                    )
                name = f"{node.name}.{role}"
            if tensor.dtype not in {torch.float32, torch.int64}:
                raise UnsupportedError(f"its `{role}` is {tensor.dtype}; call `module.float()` first")
            params[role] = name
            self._tensors[name] = tensor
        return params

    def _item(self, node: fx.Node) -> Outcome:
        source, index = node.args
        if not isinstance(source, fx.Node):
            raise UnsupportedError("it takes an item of what is no tensor")
        if isinstance(self._runs[0][source], torch.Tensor):
            return self._last_state(source, index) or self._sliced(source, index)
        if index == 0 and source.op == "call_module":
            return self._aliases[source]
        raise UnsupportedError(
            "of a layer with several results only the first is taken, and `h_n[-1]` of a recurrent layer's state"
        )

    def _last_state(self, source: fx.Node, index: object) -> Outcome | None:
        """Return the last hidden state of a recurrent layer, ``h_n[-1]``, as the last step of its output."""
        if not _is_item(source, index_is=None):
            return None
        inner = source.args[0]
        if not isinstance(inner, fx.Node):
            return None
        # LSTM gives (output, (h_n, c_n)), the others (output, h_n).
        if _is_item(inner, index_is=_STATE) and source.args[1] == 0:
            origin = inner.args[0]
        elif source.args[1] == _STATE:
            origin = inner
        else:
            return None
        if not isinstance(origin, fx.Node) or origin.op != "call_module":
            return None
        layer = self._module.get_submodule(str(origin.target))
        if layer_of(layer).op not in _RECURRENT:
            return None
        last = index == -1 or (index == 0 and layer.num_layers == 1)
        if not last or layer.bidirectional:
            raise UnsupportedError("of the final state, `[-1]` of a layer in one direction is taken")
        return Emit("select", [self._aliases[origin]], {"dim": 1 if layer.batch_first else 0, "index": -1})

    def _sliced(self, source: fx.Node, index: object) -> Outcome:
        parts = list(index) if isinstance(index, tuple) else [index]
        if any(isinstance(part, fx.Node) for part in parts):
            parts = [self._argument(part) for part in parts]
        chosen = [(dim, part) for dim, part in enumerate(parts) if not _is_whole(part)]
        if len(chosen) != 1 or not isinstance(chosen[0][1], int) or isinstance(chosen[0][1], bool):
            raise UnsupportedError("take one index of one dimension, such as `x[:, 0]`; ranges are not taken")
        if any(part is Ellipsis for part in parts):
            raise UnsupportedError("write the dimensions out, without `...`")
        return Emit("select", [self._aliases[source]], {"dim": chosen[0][0], "index": chosen[0][1]})

    def _argument(self, argument: Any) -> Any:  # noqa: ANN401 -- any argument
        if isinstance(argument, list | tuple):
            return type(argument)(self._argument(item) for item in argument)
        if not isinstance(argument, fx.Node):
            return argument
        if argument in self._aliases and argument.op != "get_attr":
            return self._aliases[argument]
        values = [run[argument] for run in self._runs]
        if isinstance(values[0], torch.Tensor):
            return values[0]
        if any(value != values[0] for value in values):
            return _Varying(values[0])
        return values[0]

    def _is_causal(self, mask: object) -> bool:
        if mask is None:
            return False
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:  # noqa: PLR2004 -- [T, T]
            hidden = mask if mask.dtype is torch.bool else mask == float("-inf")
            wanted = torch.ones_like(hidden, dtype=torch.bool).triu(1)
            if torch.equal(hidden, wanted) and (mask.dtype is torch.bool or not mask.masked_fill(hidden, 0).any()):
                return True
        raise UnsupportedError("its mask is another than the causal one (every step sees itself and what came before)")

    def _keeps_dtype(self, node: fx.Node) -> bool:
        source = node.args[0]
        return isinstance(source, fx.Node) and self._runs[0][source].dtype == self._runs[0][node].dtype

    def _is_tensor(self, node: fx.Node) -> bool:
        value = self._runs[0][node]
        # A layer that gives a tuple is a tensor of the graph, too: its first result.
        return isinstance(value, torch.Tensor) or (node.op == "call_module" and isinstance(value, tuple))

    def _value(self, node: fx.Node, name: str) -> Value:
        value = self._runs[0][node]
        first = value[0] if isinstance(value, tuple) else value
        return Value(name, first.dim(), first.is_floating_point())

    def shape(self, node: fx.Node) -> list[int]:
        """Return the shape of what `node` gives, -1 where it varied between the runs."""
        shapes = [tuple(run[node].shape) for run in self._runs]
        if any(len(shape) != len(shapes[0]) for shape in shapes):
            raise UnsupportedError("the number of dimensions depends on the input")
        return [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]

    def _described(self, node: fx.Node, name: str) -> dict[str, Any]:
        return {"name": name, "dtype": dtype_name(self._runs[0][node].dtype), "shape": self.shape(node)}

    def _outputs(self, given: Any) -> list[dict[str, Any]]:  # noqa: ANN401 -- what `forward` returns
        if isinstance(given, fx.Node):
            named: dict[str, Any] = {"output": given}
        elif isinstance(given, Mapping):
            named = {str(name): node for name, node in given.items()}
        else:
            named = {f"output_{at}": node for at, node in enumerate(given)}
        for name, node in named.items():
            if not isinstance(node, fx.Node) or not isinstance(self._runs[0][node], torch.Tensor):
                raise TraceError(f"the result `{name}` of `forward` is no tensor; return tensors")
        return [{**self._described(node, name), "node": self._aliases[node].name} for name, node in named.items()]

    def _refusal(self, node: fx.Node, advice: str) -> TraceError:
        place = node.meta.get("place", "")
        where = f", at {place}" if place else ""
        if node.op == "call_module":
            kind = type(self._module.get_submodule(str(node.target))).__name__
            return TraceError(f"the layer `{node.target}` ({kind}) cannot be described{where}: {advice}")
        return TraceError(f"the call `{_function_name(node)}` cannot be described{where}: {advice}")

    def _compare(self, graph: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        rebuilt = GraphModule(graph, weights)
        wanted, given = (_flat(run(*self._example)) for run in (self._module, rebuilt))
        for one, other in zip(wanted, given, strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise TraceError(
                    "what was traced gives other results than the module; it depends on something beside its inputs"
                )


@dataclass(frozen=True, slots=True)
class _Varying:
    """A number that depends on the sizes of the inputs; good for shapes, not for arithmetic."""

    example: object


@dataclass(frozen=True, slots=True)
class _ShapeOf:
    translator: _Translator
    node: fx.Node

    def shape(self) -> list[int]:
        """Return the result's shape, -1 where it varies."""
        return self.translator.shape(self.node)


def _check_example(example: Sequence[object]) -> None:
    for tensor in example:
        if not isinstance(tensor, torch.Tensor):
            raise TraceError("an example is a tensor, such as `torch.zeros(1, 10)`")
        dtype_name(tensor.dtype)
    if not example:
        raise TraceError("pass one example tensor for each argument of `forward`, such as `torch.zeros(1, 10)`")


def _symbolic(module: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(module)
    except TraceError:
        raise
    except Exception as exc:
        place = _raised_at(exc.__traceback__)
        raise TraceError(
            f"`forward` cannot be followed at {place}: {_said(exc)}. Conditions, loops and conversions that look at "
            "values have no description; write them with layers and arithmetic"
        ) from exc


def _raised_at(trace: TracebackType | None) -> str:
    place = "its first line"
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "modelkeep.")):
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _run(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> dict[fx.Node, Any]:
    recorder = _Recorder(module)
    try:
        recorder.run(*example)
    except Exception as exc:
        raise TraceError(f"the module does not run on the example: {_said(exc)}") from exc
    return recorder.values


def _varied(module: fx.GraphModule, example: Sequence[torch.Tensor], dim: int) -> dict[fx.Node, Any]:
    recorder = _Recorder(module)
    try:
        recorder.run(*(torch.cat([tensor, tensor], dim) if tensor.dim() > dim else tensor for tensor in example))
    except Exception as exc:
        raise TraceError(
            f"the module runs on the example, but not when dimension {dim} of its inputs is twice as large "
            f"({_said(exc)}); mend it, or pass to `trace` the dimensions that may vary as `varying`"
        ) from exc
    return recorder.values


def _said(exc: Exception) -> str:
    """Return the first line of what torch says; it adds dumps of the graph below it."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].partition("  While executing")[0]


def _function_name(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return NAMED.get(node.target) or str(getattr(node.target, "__name__", node.target))


def _is_item(node: fx.Node, *, index_is: int | None) -> bool:
    is_item = getattr(node.target, "__name__", "") == "getitem"
    return is_item and (index_is is None or bool(node.args[1] == index_is))


def _is_whole(part: object) -> bool:
    return isinstance(part, slice) and (part.start, part.stop, part.step) in {(None, None, None), (0, None, None)}


def _at(arguments: Sequence[Any], index: int) -> Any:  # noqa: ANN401 -- any argument
    return arguments[index] if len(arguments) > index else None


def _refuse_given(named: Mapping[str, object], name: str, given: object) -> None:
    if named.get(name, given) is not None:
        raise UnsupportedError(f"leave `{name}` out; pad sequences to one length instead")


def _attention_inputs(arguments: Sequence[Any], named: Mapping[str, Any]) -> list[Value]:
    inputs = [named.get(name, _at(arguments, at)) for at, name in enumerate(("query", "key", "value"))]
    if not all(isinstance(value, Value) for value in inputs):
        raise UnsupportedError("give it query, key and value from the graph")
    return inputs[:1] if inputs[0] == inputs[1] == inputs[2] else inputs


def _flat(result: Any) -> list[torch.Tensor]:  # noqa: ANN401 -- what a module gives
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, Mapping) else list(result)
