"""What is measured over HTTP: a tiny model flat out, a model under ten times its load, a table model at 200 requests/s.

Each returns a figure, outputs to compare or check, and details. Not here: batching and gRPC (see `batching`, `grpc`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_cases.client import Reply, closed_loop, open_loop, post, quantile
from benchmarks.serve_cases.process import pin_client, server

Found = tuple[float, dict[str, float], dict[str, Any]]
_FEATURES = [round(0.1 * index - 0.8, 3) for index in range(16)]
_CONNECTIONS = 32


def tiny(contestant: str, folder: Path, quick: bool) -> Found:
    """Return requests a second of one connection-bound server, with the probability it gives as an output."""
    import uvloop

    pin_client()
    instance: Any = {"features": _FEATURES} if contestant.startswith("ours") else _FEATURES
    path, body = "/v1/models/mlp:predict", json.dumps({"instances": [instance]}).encode()
    if contestant == "ours infer":
        path, body = "/v2/models/mlp/infer", _infer({"features": ("FP32", [1, 16], _FEATURES)})
    seconds = 2.0 if quick else 5.0
    with server(contestant.partition(" ")[0], folder, "mlp") as there:
        request = post(there.port, path, body)
        uvloop.run(closed_loop(there.port, request, _CONNECTIONS, 0.5, 0.0))
        before = there.cpu_seconds()
        replies = uvloop.run(closed_loop(there.port, request, _CONNECTIONS, seconds, 0.0))
        cpu_us = (there.cpu_seconds() - before) / max(1, len(replies)) * 1e6
    good = [reply for reply in replies if reply.status == 200]
    outputs = {"refused": float(len(replies) - len(good))}
    if contestant != "bare":
        outputs["probability"] = _probability(contestant, json.loads(good[-1].body))
        outputs["different_answers"] = float(
            len({_probability(contestant, json.loads(r.body)) for r in good[::50]}) - 1
        )
    times = [reply.seconds * 1e3 for reply in good]
    details = {"p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99), "server_cpu_us": cpu_us}
    return len(good) / seconds, outputs, details


def overload(contestant: str, folder: Path, quick: bool) -> Found:
    """Return p99 of accepted requests at ten times the sustainable rate, as a multiple of the idle server's p99."""
    import uvloop

    pin_client()
    rng = random.Random(0)  # noqa: S311
    ids = [rng.randrange(1000) for _ in range(32)]
    tensors = {name: ("INT64", [1, 32], values) for name, values in _text_inputs(ids).items()}
    seconds = 3.0 if quick else 10.0
    with server("ours", folder, "text") as there:
        port = there.port
        request = post(port, "/v2/models/text/infer", _infer(tensors))
        flat_out = uvloop.run(closed_loop(port, request, 8, 2.0, 0.5))
        rate = len([reply for reply in flat_out if reply.status == 200]) / 2.0
        idle = uvloop.run(open_loop(port, request, rate / 10, seconds, 0.5, 64))
        busy = uvloop.run(open_loop(port, request, 10 * rate, seconds, 1.0, 384))
    good = [reply.seconds * 1e3 for reply in busy if reply.status == 200]
    refused = [reply for reply in busy if reply.status in (429, 503)]
    alone = [reply.seconds * 1e3 for reply in idle if reply.status == 200]
    p99, idle_p99 = quantile(good, 0.99), quantile(alone, 0.99)
    outputs = {
        "accepted": float(len(good)),
        "other_statuses": float(len(busy) - len(good) - len(refused)),
        "refused_without_retry_after": float(sum(not reply.retry_after for reply in refused)),
        "refused_p99_ms": _p99(refused),
        "kept_of_sustainable": len(good) / seconds / rate,
    }
    details = {"rate": rate, "idle_p50_ms": quantile(alone, 0.5), "idle_p99_ms": idle_p99, "p99_ms": p99}
    return p99 / idle_p99, outputs, {**details, "p50_ms": quantile(good, 0.5), "refused": len(refused)}


def table(contestant: str, folder: Path, quick: bool) -> Found:
    """Return p99 in milliseconds of whole requests at 200 a second: a row in, a verdict out."""
    import uvloop

    pin_client()
    row = {"numeric": [0.1 * index for index in range(15)], "categorical": [1, 2, 3, 4, 5]}
    with server("ours", folder, "table") as there:
        port = there.port
        request = post(port, "/v1/models/table:predict", json.dumps({"instances": [row]}).encode())
        replies = uvloop.run(open_loop(port, request, 200.0, 3.0 if quick else 15.0, 1.0, 64))
    times = [reply.seconds * 1e3 for reply in replies]
    failed = float(sum(reply.status != 200 for reply in replies))
    return quantile(times, 0.99), {"failed": failed}, {"p50_ms": quantile(times, 0.5), "requests": len(times)}


def _infer(tensors: Mapping[str, tuple[str, list[int], Sequence[float]]]) -> bytes:
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": list(data)}
        for name, (datatype, shape, data) in tensors.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def _text_inputs(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}


def _probability(contestant: str, answer: Any) -> float:
    """Return the probability of the second class, whichever way a server tells it."""
    if contestant == "ours infer":
        logits = answer["outputs"][0]["data"]
    elif contestant == "fastapi":
        logits = answer["predictions"][0]
    else:
        found: float = next(one["score"] for one in answer["predictions"][0]["classes"] if one["index"] == 1)
        return found
    return 1 / (1 + math.exp(logits[0] - logits[1]))


def _p99(replies: list[Reply]) -> float:
    return quantile([reply.seconds * 1e3 for reply in replies], 0.99) if replies else 0.0
