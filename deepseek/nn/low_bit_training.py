"""Binary and ternary layers as they are trained: float weights kept, used as their signs, gradients straight-through.

`to_latent` gives a model such layers, the usual training loop trains them (they hold the same parameters under the same
names as before), `pack_latent` makes the stored form, which answers alike. Sources: XNOR-Net, arXiv:1603.05279; Ternary
Weight Networks, arXiv:1605.04711; first and last layer in full precision as there. Not here: int8 (`deepseek.
quantization.qat`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.nn.binary_functions import binary_scale, mean_magnitude, sign, ternarize, window_scale
from deepseek.nn.binary_layers import BinaryConv2d, BinaryLinear
from deepseek.nn.conv_shape import ConvShape
from deepseek.nn.int8_swap import set_layer
from deepseek.nn.ternary_layers import TernaryConv2d, TernaryLinear

LatentBits = Literal[1, 2]
"""1: weights and inputs of -1 and 1; 2: weights of -1, 0 and 1, inputs as they are."""


class LatentLinear(nn.Linear):
    """`nn.Linear` that multiplies by the binary (`bits` 1) or ternary (2) form of its float weight."""

    bits: LatentBits

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: LatentBits) -> Self:
        """Return a layer that holds the parameters of `linear` themselves."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias, layer.bits = linear.weight, linear.bias, bits
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.bits == 2:
            return F.linear(x, ternarize(self.weight), self.bias)
        y = F.linear(sign(x), sign(self.weight)) * binary_scale(self.weight) * mean_magnitude(x, -1)
        return y if self.bias is None else y + self.bias

    def packed(self) -> nn.Module:
        """Return the layer as it is stored and served."""
        return TernaryLinear.from_linear(self) if self.bits == 2 else BinaryLinear.from_linear(self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class LatentConv2d(nn.Conv2d):
    """`nn.Conv2d` (zero padding) that multiplies by the binary (`bits` 1) or ternary (2) form of its float weight."""

    bits: LatentBits
    shape: ConvShape

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, bits: LatentBits) -> Self:
        """Return a layer that holds the parameters of `conv` themselves. Raises ModelError for padding without form."""
        shape = ConvShape.of(conv)
        steps = {"stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation, "groups": shape.groups}
        bias = conv.bias is not None
        layer = cls(shape.in_channels, shape.out_channels, shape.kernel_size, **steps, bias=bias, device="meta")  # type: ignore[arg-type]  # one dict for all
        layer.weight, layer.bias, layer.bits, layer.shape = conv.weight, conv.bias, bits, shape
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.bits == 2:
            return self.shape.convolve(x, ternarize(self.weight), self.bias)
        y = self.shape.convolve(sign(x), sign(self.weight), None) * binary_scale(self.weight).reshape(-1, 1, 1)
        y = y * window_scale(mean_magnitude(x, 1), self.shape)
        return y if self.bias is None else y + self.bias.reshape(-1, 1, 1)

    def packed(self) -> nn.Module:
        """Return the layer as it is stored and served."""
        return TernaryConv2d.from_conv(self) if self.bits == 2 else BinaryConv2d.from_conv(self)

    def extra_repr(self) -> str:
        return f"{self.shape.describe()}, bits={self.bits}"


def to_latent(model: nn.Module, bits: LatentBits, skip: Sequence[str] | None = None) -> list[str]:
    """Replace linear layers and 2-D convolutions by latent ones, in place; return their names.

    `skip`: module names that stay, `*` and `?` allowed; by default the first and the last such layer. A layer whose
    parameters another module shares stays too. Raises ModelError where no layer is left, before anything changes.
    """
    found = [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    patterns = [found[0], found[-1]] if skip is None and found else list(skip or [])
    shared = _shared_parameters(model)
    free = [name for name in found if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    layers = {name: model.get_submodule(name) for name in free}
    chosen = {
        name: _latent(name, layer, bits)
        for name, layer in layers.items()
        if not shared & {id(parameter) for parameter in layer.parameters()}
    }
    if not chosen:
        raise ModelError(
            "no layer is left to train with few bits",
            found=f"{len(found)} linear layers and convolutions, skip {patterns}",
            fix="name fewer layers in skip; by default the first and the last stay",
        )
    for name, layer in chosen.items():
        set_layer(model, name, layer)
    return list(chosen)


def pack_latent(model: nn.Module) -> list[str]:
    """Replace latent layers by packed ones, in place, and freeze the model; return their names.

    Raises ModelError for weights that are not finite, before anything changes.
    """
    latent = {name: module for name, module in model.named_modules() if isinstance(module, LatentLinear | LatentConv2d)}
    broken = [name for name, layer in latent.items() if not bool(layer.weight.isfinite().all())]
    if broken:
        raise ModelError(
            f"the weight of layer '{broken[0]}' is not finite", fix="go back to a checkpoint before training diverged"
        )
    for name, layer in latent.items():
        set_layer(model, name, layer.packed())
    model.requires_grad_(False)
    return list(latent)


def _latent(name: str, layer: nn.Module, bits: LatentBits) -> nn.Module:
    if bits not in (1, 2):
        raise ModelError(f"layer '{name}' can't be trained so", found=f"{bits} bits", wanted="1 or 2")
    if isinstance(layer, nn.Linear):
        return LatentLinear.from_linear(layer, bits)
    if isinstance(layer, nn.Conv2d):
        return LatentConv2d.from_conv(layer, bits)
    raise ModelError(f"layer '{name}' has no latent form", found=type(layer).__name__, wanted="Linear or Conv2d")


def _shared_parameters(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
