"""The servers that are held against each other, each in a process of its own: `python -m ... KIND FOLDER CORE`.

`bare`: uvicorn with httptools and uvloop around an application that reads the request and sends a constant.
`fastapi`: what one writes by hand, FastAPI with a pydantic model and torch. `ours`: `deepseek.serve`. `grpc_plain` and
`grpc_ours`: a handler written by hand with grpc.aio and ONNX Runtime, and `deepseek.serve.rpc`.
Each prints `ready PORT` and serves until its input is closed or it is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

ANSWER = b'{"predictions":[{"label":"0","scores":{"0":0.5,"1":0.5}}],"model":"mlp","version":"1"}'


def bare() -> Any:
    """Return an application that answers every request with the same bytes."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    return app


def by_hand(folder: Path) -> Any:
    """Return a FastAPI application around the bundle's model."""
    import torch
    from fastapi import FastAPI
    from pydantic import BaseModel

    from deepseek import bundle as bundles

    torch.set_num_threads(1)
    model = bundles.load(folder / "mlp", device="cpu").model
    app = FastAPI()

    class Rows(BaseModel):
        instances: list[list[float]]

    def predict(rows: Rows) -> dict[str, list[list[float]]]:
        with torch.inference_mode():
            return {"predictions": model(torch.tensor(rows.instances)).tolist()}

    predict.__annotations__["rows"] = Rows
    app.post("/v1/models/mlp:predict")(predict)
    return app


def ours(folder: Path, names: list[str], on_ready: Any) -> None:
    """Serve bundles of the folder until the process ends."""
    from deepseek.serve.server import serve

    serve({name: folder / name for name in names}, port=0, device="cpu", on_ready=on_ready)


async def grpc_plain(folder: Path) -> None:
    """Answer the protocol's ModelInfer by hand: parse, run, pack."""
    import grpc  # type: ignore[import-untyped]
    import numpy as np
    import onnxruntime

    from deepseek.serve.rpc.messages import ModelInferRequest, ModelInferResponse

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "mlp" / "exports" / "model.onnx"), options)

    async def infer(request: Any, context: Any) -> Any:
        shape = list(request.inputs[0].shape)
        features = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        (logits,) = session.run(None, {"features": features})
        answer = ModelInferResponse(model_name=request.model_name, model_version="1")
        answer.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
        answer.raw_output_contents.append(logits.tobytes())
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        infer, ModelInferRequest.FromString, ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print("ready", port, flush=True)
    await server.wait_for_termination()


async def grpc_ours(folder: Path) -> None:
    """Serve the bundle with our gRPC server on this event loop."""
    from deepseek.serve.rpc.server import RpcServer
    from deepseek.serve.service import Service

    service = Service({"mlp": folder / "mlp"}, device="cpu")
    service.start()
    service.verify()
    server = RpcServer(service, "127.0.0.1", 0)
    await server.start()
    print("ready", server.port, flush=True)
    await asyncio.Event().wait()


def run_app(app: Any) -> None:
    """Run an application in uvicorn on a free port."""
    import socket

    import uvicorn

    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen(1024)
    print("ready", bound.getsockname()[1], flush=True)
    config = uvicorn.Config(app, http="httptools", loop="uvloop", log_config=None, access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[bound])


def main() -> None:
    """Run one server."""
    kind, folder, core, *names = sys.argv[1:]
    if int(core) >= 0:
        os.sched_setaffinity(0, {int(core)})
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    if kind == "ours":
        ours(Path(folder), names, lambda told: print("ready", told.url.rpartition(":")[2], flush=True))
    elif kind.startswith("grpc"):
        asyncio.run(grpc_plain(Path(folder)) if kind == "grpc_plain" else grpc_ours(Path(folder)))
    else:
        run_app(bare() if kind == "bare" else by_hand(Path(folder)))


if __name__ == "__main__":
    main()
