"""What one writes without a platform: a Starlette endpoint that calls the torch module in a thread of its own process.

No login, no tenants, no limits, no log; the same net, the same requests and answers, the same server underneath.
``python bare.py PORT``
"""

import sys
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def net() -> torch.nn.Module:
    """Return the net that both sides serve."""
    return torch.nn.Sequential(
        torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 4)
    ).eval()


def app(module: torch.nn.Module) -> Starlette:
    """Return the application."""

    def compute(given: dict[str, Any]) -> list[float]:
        with torch.inference_mode():
            values: list[float] = module(torch.tensor(given["data"]).reshape(given["shape"])).flatten().tolist()
            return values

    async def infer(request: Request) -> JSONResponse:
        (given,) = (await request.json())["inputs"]
        data = await run_in_threadpool(compute, given)
        shape = [given["shape"][0], 4]
        output = {"name": "y", "datatype": "FP32", "shape": shape, "data": data}
        return JSONResponse({"model_name": "net", "model_version": "1", "outputs": [output]})

    return Starlette(routes=[Route("/v2/models/net/infer", infer, methods=["POST"])])


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(app(net()), port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="error", access_log=False)
