"""In which number format a layer computes, and which weight it stands for, whether it is quantized or not.

Not here: quantized layers themselves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def float_tensor(layer: nn.Module) -> Tensor:
    """Return a floating-point tensor of a layer with a weight, for its dtype and device.

    That is the weight, or where it is stored in integers, their scales.
    """
    any_layer: Any = layer
    found: Tensor = any_layer.weight
    return found if found.is_floating_point() else any_layer.scale


def float_weight(layer: nn.Module) -> Tensor:
    """Return the floating-point weight that a layer stands for, in its own shape."""
    any_layer: Any = layer
    dequantized = getattr(any_layer, "dequantized_weight", None)
    found: Tensor = any_layer.weight if dequantized is None else dequantized()
    return found
