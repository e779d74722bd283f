"""How long a model takes: the first token (prefill) and each one after it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from deepseek.models.generation import SamplingConfig, stream_tokens


def measure_generation(
    model: nn.Module, prompt_ids: list[int], new_tokens: int = 32, repeats: int = 3
) -> dict[str, Any]:
    """Return `prefill_ms` and `token_ms` {median, p10, p90} of greedy generation after `prompt_ids`.

    One run to warm up, then `repeats` runs; the model's mode is restored.
    """
    was_training = model.training
    model.eval()
    sampling = SamplingConfig(max_new_tokens=new_tokens, do_sample=False)
    prefill, tokens = [], []
    try:
        for repeat in range(repeats + 1):
            times = [_now()]
            for _ in stream_tokens(model, prompt_ids, sampling):
                times.append(_now())
            if repeat:
                prefill.append(times[1] - times[0])
                tokens += [after - before for before, after in zip(times[1:], times[2:], strict=False)]
    finally:
        model.train(was_training)
    return {"prefill_ms": statistics.median(prefill) * 1e3, "token_ms": _spread(tokens or prefill)}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3

    return {"median": statistics.median(ordered) * 1e3, "p10": at(0.1), "p90": at(0.9)}
