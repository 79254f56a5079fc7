"""The serving child: holds one tenant's models and answers inference frames. The only part of serving with torch."""

from typing import Any

from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.child import READY, run
from modelkeep_platform.workers.frames import DEFAULT_BOUNDS, Frame
from modelkeep_platform.workers.limits import Limits


class Models:
    """The models this process has loaded."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._loading: dict[str, tuple[bytes, bytearray]] = {}

    def answer(self, frame: Frame) -> Frame:
        """Return the answer to one frame."""
        key = frame.fields["key"]
        if frame.kind == "load":
            return self._load(key, frame.fields["place"], frame.buffers[0], frame.id)
        if frame.kind == "unload":
            self._models.pop(key, None)
            self._loading.pop(key, None)
            return Frame(kind="unloaded", id=frame.id)
        return self._infer(key, frame)

    def _load(self, key: str, place: str, data: Any, number: int) -> Frame:  # noqa: ANN401 -- a buffer
        import safetensors.torch

        from modelkeep_platform.models.graph.format import parse
        from modelkeep_platform.models.graph.torch_build import build

        if place == "first":
            self._loading[key] = (bytes(data), bytearray())
        elif place == "more":
            self._loading[key][1].extend(data)
        else:
            graph, weights = self._loading.pop(key)
            # Each copy is let go before the next is made: at no time is a large model there three times.
            file = bytes(weights)
            weights.clear()
            tensors = safetensors.torch.load(file)
            del file
            module = build(parse(graph))
            module.load_named(tensors)
            self._models[key] = module.eval()
            return Frame(kind="loaded", id=number)
        return Frame(kind="more", id=number)

    def _infer(self, key: str, frame: Frame) -> Frame:
        import numpy as np
        import torch

        inputs, offset, body = [], 0, bytearray(frame.buffers[0])
        for dtype, shape, length in frame.fields["inputs"]:
            array = np.frombuffer(body, dtype=dtype, count=length // np.dtype(dtype).itemsize, offset=offset)
            inputs.append(torch.from_numpy(array.reshape(shape)))
            offset += length
        with torch.inference_mode():
            result = self._models[key](*inputs)
        results = result if isinstance(result, tuple) else (result,)
        arrays = [np.ascontiguousarray(value.numpy()) for value in results]
        described = [(str(array.dtype), list(array.shape), array.nbytes) for array in arrays]
        body_out = b"".join(array.tobytes() for array in arrays)
        return Frame(kind="answer", id=frame.id, fields={"outputs": described}, buffers=[body_out])


def serve(channel: SyncChannel, limits: Limits) -> None:
    """Answer frames until the control process is gone."""
    import torch

    torch.set_num_threads(limits.threads)
    models = Models()
    channel.send(Frame(kind=READY))
    while True:
        frame = channel.receive()
        channel.send(_guarded(models, frame))


def _guarded(models: Models, frame: Frame) -> Frame:
    try:
        answer = models.answer(frame)
        # An answer that no frame holds would end this process.
        if sum(len(buffer) for buffer in answer.buffers) <= DEFAULT_BOUNDS.total_bytes:
            return answer
        code = "out_of_memory"
    except Exception as exc:  # noqa: BLE001 -- what went wrong inside a model is not shown: it could hold data
        # Torch has no type of its own for it.
        out = isinstance(exc, MemoryError) or (isinstance(exc, RuntimeError) and "allocate memory" in str(exc))
        code = "out_of_memory" if out else "inference_failed"
    return Frame(kind="failed", id=frame.id, fields={"code": code})


if __name__ == "__main__":
    run(serve)
