"""AdaRound: whether each weight is rounded up or down is learned, so that the layer's outputs keep.

The outputs' squared error is e G e^T, with e the rounding error of a row of weights and G = E[x x^T] of the inputs that
it meets: G is all that is kept of the data, so memory does not grow with it, and every layer stands alone.
Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.int8_conv import conv_rows
from deepseek.quantization.calibrate import layer_input

_STRETCH = 0.1  # the soft choice goes from -0.1 to 1.1, cut to 0..1, so that it can settle (equation 23)
_STEPS = 300
_RATE = 0.05
_WARM_UP = 0.2  # of the steps: outputs alone
_SHARPNESS = (20.0, 2.0)  # of the pull towards 0 or 1, from the end of the warm-up to the last step (equation 24)
_PULL = 2.0  # weight of that pull against the squared error, which counts as 1 for rounding to the nearest


class InputProducts:
    """Sums the products of the inputs that meet a row of a layer's weights: `matrix` fp32 `(groups, width, width)`.

    `width` is what one output channel reads: in_features, or in_channels / groups times the kernel's size.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer: Any = layer
        self.matrix: Tensor | None = None
        self.rows = 0

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        rows = _patches(self._layer, layer_input(args, kwargs).to(torch.float32))
        products = rows.transpose(1, 2) @ rows
        self.matrix = products if self.matrix is None else self.matrix + products
        self.rows += rows.shape[1]

    def mean(self) -> Tensor | None:
        """Return E[x x^T], or None where nothing was seen."""
        return None if self.matrix is None else self.matrix / self.rows


def round_weights(rows: Tensor, step: Tensor, products: Tensor, lowest: int = -127, highest: int = 127) -> Tensor:
    """Return the integers, float `(out, width)`, that `rows` are rounded to, each up or down.

    `step`: the size of one integer, `(out, 1)` or `(out, width)`. `products`: E[x x^T] `(groups, width, width)`; the
    rows of one group lie together. Never worse than rounding to the nearest, measured by the outputs' squared error.
    """
    exact = rows.to(torch.float32) / step
    floor = exact.floor().clamp(lowest, highest - 1)
    nearest = exact.round().clamp(lowest, highest)
    part = (exact - floor).clamp(0.01, 0.99)
    soft = nn.Parameter(torch.logit((part + _STRETCH) / (1 + 2 * _STRETCH)))
    optimizer = torch.optim.Adam([soft], lr=_RATE)
    start = _output_error((nearest - exact) * step, products).clamp_min(1e-30)
    for number in range(_STEPS):
        chosen = _stretched(soft)
        loss = _output_error((floor + chosen - exact) * step, products) / start
        progress = (number / _STEPS - _WARM_UP) / (1 - _WARM_UP)
        if progress >= 0:
            sharpness = _SHARPNESS[0] + (_SHARPNESS[1] - _SHARPNESS[0]) * progress
            loss = loss + _PULL * (1 - (2 * chosen - 1).abs().pow(sharpness)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        learned = floor + (_stretched(soft) >= 0.5).to(floor.dtype)
        better = _row_errors((learned - exact) * step, products) <= _row_errors((nearest - exact) * step, products)
        return torch.where(better.reshape(-1, 1), learned, nearest)


def weight_rows(layer: nn.Module) -> Tensor:
    """Return a layer's weight as `(out_channels, width)`, fp32."""
    weight = layer.get_parameter("weight").detach()
    if isinstance(layer, nn.modules.conv._ConvNd):
        weight = conv_rows(weight, layer.groups, layer.transposed)
    return weight.flatten(1).to(torch.float32)


def has_rows(layer: nn.Module) -> bool:
    """Return whether each output of the layer is one row of weights times a part of its input."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed)


def _stretched(soft: Tensor) -> Tensor:
    return (soft.sigmoid() * (1 + 2 * _STRETCH) - _STRETCH).clamp(0, 1)


def _row_errors(error: Tensor, products: Tensor) -> Tensor:
    grouped = torch.unflatten(error, 0, (products.shape[0], -1))
    return ((grouped @ products) * grouped).sum(dim=2).flatten()


def _output_error(error: Tensor, products: Tensor) -> Tensor:
    return _row_errors(error, products).sum()


def _patches(layer: Any, x: Tensor) -> Tensor:
    """Return what meets the rows of weights: `(groups, positions, width)`."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).unsqueeze(0)
    dims = len(layer.kernel_size)
    x = F.pad(x, layer._reversed_padding_repeated_twice)
    for dim, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (batch, channels, *space, *kernel) -> (groups, batch * space, channels of the group * kernel)
    x = torch.unflatten(x, 1, (layer.groups, -1)).movedim(1, 0).movedim(2, 2 + dims)
    return x.flatten(3 + dims - 1).flatten(1, 1 + dims)
