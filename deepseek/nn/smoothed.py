"""A linear layer whose input is scaled channel by channel first, and the bundle's word for it ("smoothed").

Where activations have channels far larger than others, int8 is better off when a part of their size has moved into the
weight. Where the norm before can't take that factor over, it is multiplied here.
Not here: which factor (`deepseek.quantization.smooth`).
Source: Xiao et al. 2022, "SmoothQuant", arXiv:2211.10438, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.float_tensor import float_weight
from deepseek.nn.int8_swap import get_layer, set_layer


class Smoothed(nn.Module):
    """`layer(x * factor)`; x `(..., in_features)`. State dict: `factor` fp32 `(in_features,)` and the layer's own."""

    factor: Tensor

    def __init__(self, layer: nn.Module, factor: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x * self.factor.to(x.dtype))
        return out

    def dequantized_weight(self) -> Tensor:
        """Return the weight that meets the input as it comes, in floating point."""
        return float_weight(self.layer) * self.factor

    @property
    def weight(self) -> Tensor:
        """The same, for code that asks a layer for its number format or multiplies by its weight itself."""
        return self.dequantized_weight()

    @property
    def in_features(self) -> int:
        """The size of the input."""
        return self.factor.numel()


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the smoothed layers: name -> the number of input channels."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module.factor.numel() for name, module in named if isinstance(module, Smoothed)}


def apply(model: nn.Module, spec: Mapping[str, Any]) -> None:
    """Wrap the linear layers named in `spec`, without values. Raises ModelError for what does not fit."""
    wrapped: dict[int, Smoothed] = {}
    for name, channels in spec.items():
        layer = get_layer(model, name)
        if not isinstance(layer, nn.Linear) or layer.in_features != channels:
            raise ModelError(
                f"the input of '{name}' can't be scaled", found=layer, wanted=f"a Linear of {channels} input features"
            )
        empty = torch.ones(layer.in_features, device=layer.weight.device)
        smoothed = wrapped.setdefault(id(layer), Smoothed(layer, empty).train(layer.training))
        set_layer(model, name, smoothed)
