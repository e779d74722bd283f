"""gRPC: ModelInfer of a tiny model, our server against a handler written by hand. Not here: REST (see `measures`)."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_cases.client import quantile
from benchmarks.serve_cases.process import pin_client, server

_CALLS = 32
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


def rpc(contestant: str, folder: Path, quick: bool) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Return calls a second with 32 under way, with the probability answered; `contestant` is `ours` or `plain`."""
    pin_client()
    with server(f"grpc_{contestant}", folder) as there:
        asyncio.run(_load(there.port, 0.5))
        before = there.cpu_seconds()
        rate, outputs, details = asyncio.run(_load(there.port, 2.0 if quick else 5.0))
        cpu_us = (there.cpu_seconds() - before) / max(1.0, details["calls"]) * 1e6
    return rate, outputs, {**details, "server_cpu_us": cpu_us}


async def _load(port: int, seconds: float) -> tuple[float, dict[str, float], dict[str, Any]]:
    import grpc  # type: ignore[import-untyped]

    from deepseek.serve.rpc.messages import ModelInferRequest, ModelInferResponse

    request = ModelInferRequest(model_name="mlp")
    request.inputs.add(name="features", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(np.linspace(-0.8, 0.7, 16, dtype=np.float32).tobytes())
    body = request.SerializeToString()
    times: list[float] = []
    last = b""
    start = time.perf_counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(_METHOD)  # bytes in and out: the client's own work is not what counts

        async def ask() -> None:
            nonlocal last
            while (before := time.perf_counter()) < start + seconds:
                last = await call(body)
                times.append((time.perf_counter() - before) * 1e3)

        await asyncio.gather(*[ask() for _ in range(_CALLS)])
    answer = ModelInferResponse.FromString(last)
    logits = np.frombuffer(answer.raw_output_contents[0], np.float32)
    probability = 1 / (1 + math.exp(float(logits[0] - logits[1])))
    details = {"calls": float(len(times)), "p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
    return len(times) / seconds, {"probability": probability}, details
