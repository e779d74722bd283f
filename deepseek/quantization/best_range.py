"""Calibration `best`: for each layer the range, of those every method proposes, whose output is nearest the float one.

Not here: the methods (`ranges.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from deepseek.nn.int8_conv import Int8Conv
from deepseek.nn.int8_linear import Int8Linear
from deepseek.quantization.calibrate import Batch, layer_input, watch_layers
from deepseek.quantization.config import Calibration
from deepseek.quantization.observers import Histogram
from deepseek.quantization.ranges import find_range, scale_and_zero_point


class Tried(NamedTuple):
    """One candidate: who proposed it, and what it says."""

    calibration: Calibration
    scale: float
    zero_point: int


def candidates(histogram: Histogram, symmetric: bool) -> list[Tried]:
    """Return what each method makes of a histogram, equal ranges once."""
    found: dict[tuple[float, int], Tried] = {}
    for calibration in get_args(Calibration):
        if calibration != "best":
            scale, zero_point = scale_and_zero_point(*find_range(histogram, calibration, symmetric), symmetric)
            found.setdefault((scale, zero_point), Tried(calibration, scale, zero_point))
    return list(found.values())


def set_best_ranges(
    model: nn.Module,
    layers: Mapping[str, Int8Linear | Int8Conv],
    histograms: Mapping[str, Histogram],
    batches: Iterable[Batch],
) -> dict[str, Calibration]:
    """Try each method's range on the batches and keep, for each static layer, that of least squared output error.

    `model` holds the float layers. Returns which method won.
    """
    trials = {name: _Trial(layer, candidates(histograms[name], layer.symmetric)) for name, layer in layers.items()}
    watch_layers(model, {name: trial.hook for name, trial in trials.items()}, batches)
    return {name: trial.decide() for name, trial in trials.items()}


class _Trial:
    def __init__(self, layer: Int8Linear | Int8Conv, tried: list[Tried]) -> None:
        self._layer, self._tried = layer, tried
        self._errors = torch.zeros(len(tried), dtype=torch.float64)

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = layer_input(args, kwargs)
        for index, tried in enumerate(self._tried):
            self._layer.set_input_range(tried.scale, tried.zero_point)
            self._errors[index] += float((output - self._layer(x)).double().square().sum())

    def decide(self) -> Calibration:
        best = self._tried[int(self._errors.argmin())]
        self._layer.set_input_range(best.scale, best.zero_point)
        return best.calibration
