"""Bias correction: the mean error that rounding leaves in each output channel, taken back by the bias.

Rounded weights are off by e; on inputs x the outputs then are off by e x, whose mean over the data, e E[x], does not
vanish. Measured on exact inputs, layer by layer, in one sum for each channel.
Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.quantization.calibrate import Batch, layer_input, watch_layers
from deepseek.quantization.observers import check_finite


def correct_biases(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Batch]) -> list[str]:
    """Add to the bias of each quantized layer the mean by which the float layer of its name answers differently.

    `layers` are changed in place, `model` holds the float ones. Returns the corrected names: layers without a bias, or
    that the batches do not reach, are left alone.
    """
    sums = {name: _MeanError(name, layer) for name, layer in layers.items() if getattr(layer, "bias", None) is not None}
    watch_layers(model, {name: total.hook for name, total in sums.items()}, batches)
    for name, total in sums.items():
        if total.count:
            bias: Any = layers[name].bias
            bias.add_((total.sum / total.count).to(bias.dtype))
    return [name for name, total in sums.items() if total.count]


class _MeanError:
    """Sums for each output channel what the float layer gives more than the quantized one."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self._name, self._layer = name, layer
        self.sum = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = layer_input(args, kwargs)
        check_finite(self._name, *(float(end) for end in x.aminmax()))
        error = (output - self._layer(x)).double()
        channels_last = isinstance(module, nn.Linear)
        rows = error.flatten(0, -2) if channels_last else error.transpose(0, 1).flatten(1).t()
        self.sum = self.sum + rows.sum(dim=0)
        self.count += len(rows)
