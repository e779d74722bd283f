"""Classes and values straight from a model's output, without tensors: what the task's `predict` would say of it.

The task's own code stays what decides: this way is taken only where both were seen to agree when the form was built,
on drawn outputs as large and as small as models give. Not here: what the task calls the model with (see `calls`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import DeepSeekError

if TYPE_CHECKING:
    from deepseek.serve.forms.calls import Calls, Predicts
    from deepseek.serve.forms.form import Taker
    from deepseek.serve.tensor.datatypes import ModelSignature

Answer = Callable[[Mapping[str, NDArray[Any]]], list[float] | None]
"""From outputs of one row to probabilities or values; None for outputs that the task itself must look at."""


class Direct(NamedTuple):
    """What of a form's way may be gone directly."""

    answer: Answer
    inputs: bool
    """The task calls the model with what the batch has, as it is, where that is all the model takes."""


_MOST = 256
"""Numbers of an output up to which plain Python is quicker than tensors."""
_TRIALS = ((0.01, 0), (1.0, 1), (8.0, 2), (100.0, 3), (3000.0, 4))
"""Scale and seed of drawn outputs."""


def direct_of(task: Predicts, calls: Calls, taker: Taker, signature: ModelSignature | None) -> Direct | None:
    """Return the direct way of a task, None where there is none or it does not agree with the task."""
    if signature is None or len(signature.outputs) != 1:
        return None
    spec = signature.outputs[0]
    if spec.datatype != "FP32" or len(spec.shape) != 2 or not 1 <= spec.shape[1] <= _MOST:
        return None
    if task.name in ("classification", "image_classification"):
        way = _direct(spec.name, spec.shape[1], _chances)
    elif task.name == "regression":
        scale, shift = float(getattr(task, "scale", 1.0)), float(getattr(task, "shift", 0.0))
        way = _direct(spec.name, spec.shape[1], lambda row: [value * scale + shift for value in row])
    else:
        return None
    if not all(_agrees(way, calls, spec.name, spec.shape[1], *trial) for trial in _TRIALS):
        return None
    return Direct(way, _passes_on(calls, taker))


def _passes_on(calls: Calls, taker: Taker) -> bool:
    try:
        batch = taker.take(taker.example()).batch
        return calls.passes_on(batch) and all(calls.passes_on(_drawn(batch, seed)) for seed in range(3))
    except (DeepSeekError, RuntimeError, TypeError, ValueError, KeyError):
        return False


def _drawn(batch: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return a batch of the same shapes with other values; whole numbers become 0 and 1."""
    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=draws).to(value.dtype)
        if value.is_floating_point()
        else torch.randint(0, 2, value.shape, generator=draws).to(value.dtype)
        for name, value in batch.items()
    }


def _direct(name: str, width: int, turn: Callable[[list[float]], list[float]]) -> Answer:
    shape = (1, width)

    def way(outputs: Mapping[str, NDArray[Any]]) -> list[float] | None:
        value = outputs[name]
        if value.shape != shape:
            return None
        row = value[0].tolist()
        return turn(row) if math.isfinite(sum(row)) else None

    return way


def _chances(row: list[float]) -> list[float]:
    """Return softmax; of one number no and yes."""
    if len(row) == 1:
        yes = 1 / (1 + math.exp(-row[0])) if row[0] > -700 else 0.0
        return [1 - yes, yes]
    highest = max(row)
    each = [math.exp(value - highest) for value in row]
    whole = sum(each)
    return [value / whole for value in each]


def _agrees(way: Answer, calls: Calls, name: str, width: int, scale: float, seed: int) -> bool:
    """Return whether the direct way and the task give the same for one drawn output, as far as float32 tells."""
    drawn = np.random.default_rng(seed).normal(0.0, scale, (1, width)).astype(np.float32)
    try:
        said: Tensor = calls.answer(calls.example, {name: drawn})
        wanted = said.reshape(-1).double().cpu().numpy()
    except (DeepSeekError, RuntimeError, TypeError, ValueError, KeyError, AttributeError):
        return False
    found = np.array(way({name: drawn}))
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=1e-5, atol=1e-6 * max(1.0, scale)))
