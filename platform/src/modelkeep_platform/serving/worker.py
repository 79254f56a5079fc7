"""The serving child: holds one tenant's models and answers inference frames. The only part of serving with torch."""

from typing import Any

from modelkeep_platform.workers import child
from modelkeep_platform.workers.frames import Frame, SyncChannel


def serve(channel: SyncChannel) -> None:
    """Answer frames until the control process is gone."""
    import numpy as np
    import safetensors.torch
    import torch

    from modelkeep_platform.models.graph.format import parse
    from modelkeep_platform.models.graph.torch_build import GraphModule, build

    torch.set_grad_enabled(False)
    models: dict[str, GraphModule] = {}
    loading: dict[str, Any] = {}

    def load(fields: Any, body: bytes) -> Frame:  # noqa: ANN401 -- MessagePack fields
        if fields["last"]:
            graph, buffer = loading.pop(fields["key"])
            module = build(parse(graph))
            module.load_named(safetensors.torch.load(bytes(buffer)))
            models[fields["key"]] = module.eval()
            return Frame("loaded", {"id": fields["id"]})
        if fields["first"]:
            loading[fields["key"]] = (bytes(body), bytearray())
        else:
            loading[fields["key"]][1].extend(body)
        return Frame("more", {"id": fields["id"]})

    def infer(fields: Any, body: bytes) -> Frame:  # noqa: ANN401
        inputs, offset = [], 0
        for dtype, shape, length in fields["inputs"]:
            array = np.frombuffer(body, dtype=dtype, count=int(np.prod(shape, dtype=np.int64)), offset=offset)
            inputs.append(torch.from_numpy(array.reshape(shape)))
            offset += length
        result = models[fields["key"]](*inputs)
        arrays = [np.ascontiguousarray(value.numpy()) for value in (result if isinstance(result, tuple) else (result,))]
        described = [(str(array.dtype), list(array.shape), array.nbytes) for array in arrays]
        return Frame("answer", {"id": fields["id"], "outputs": described}, b"".join(a.tobytes() for a in arrays))

    channel.send(Frame("ready"))
    while True:
        frame = channel.receive()
        try:
            if frame.type == "load":
                answer = load(frame.fields, bytes(frame.body))
            elif frame.type == "unload":
                models.pop(frame.fields["key"], None)
                answer = Frame("loaded", {"id": frame.fields["id"]})
            else:
                answer = infer(frame.fields, bytearray(frame.body))  # type: ignore[arg-type]  # writable for torch
        except MemoryError:
            answer = Frame("failed", {"id": frame.fields["id"], "code": "out_of_memory"})
        except Exception:  # noqa: BLE001 -- what went wrong inside a model is not shown: it could hold data
            answer = Frame("failed", {"id": frame.fields["id"], "code": "inference_failed"})
        channel.send(answer)


if __name__ == "__main__":
    child.run(serve)
