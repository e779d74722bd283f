"""Static int8 layers in the form that a graph capture should see: plain products of rounded inputs and int8 weights.

The swap is for the time of the capture only; the model gets its own layers back. Layers that are not static int8, or of
a kind unknown here, stay: their own `forward` is captured. Not here: the layers themselves (`deepseek.nn.int8_linear`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.export.qdq.ops import dequantize_weight, quantize_dequantize
from deepseek.nn.int8_conv import Int8Conv
from deepseek.nn.int8_linear import Int8Linear, register_optional

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def is_static(layer: nn.Module) -> bool:
    """Return whether a layer has an int8 weight and a calibrated range for its input."""
    weight, scale = getattr(layer, "weight", None), getattr(layer, "input_scale", None)
    return isinstance(weight, Tensor) and weight.dtype == torch.int8 and isinstance(scale, Tensor)


def input_levels(layer: nn.Module) -> tuple[float, int, bool]:
    """Return (scale, zero point, signed) of a static layer's input, as `quantize_dequantize` takes them.

    A symmetric range is int8 around 0. Others are uint8: the same 256 levels, and what runtimes are fastest with.
    """
    scale, zero_point = float(cast(Tensor, layer.input_scale)), round(float(cast(Tensor, layer.input_zero_point)))
    return (scale, 0, True) if zero_point == 0 else (scale, zero_point + 128, False)


@contextlib.contextmanager
def captured_form(model: nn.Module) -> Iterator[list[str]]:
    """Hold the static int8 layers of `model` in the form for a capture; yields their names."""
    shared = _weights_with_many_owners(model)
    found: list[tuple[str, nn.Module, str, nn.Module]] = []
    forms: dict[int, nn.Module] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not name or not is_static(layer):
            continue
        if id(layer) not in forms:
            form = _form(layer, id(layer.weight) in shared)
            if form is None:
                continue
            forms[id(layer)] = form
        parent, _, attribute = name.rpartition(".")
        found.append((name, model.get_submodule(parent), attribute, layer))
    try:
        for _, owner, attribute, layer in found:
            setattr(owner, attribute, forms[id(layer)])
        yield [name for name, *_ in found]
    finally:
        for _, owner, attribute, layer in found:
            setattr(owner, attribute, layer)


class _Form(nn.Module):
    """What stands in for a layer; whatever else the model asks of it, the layer itself answers."""

    integers: Tensor
    steps: Tensor
    shift: Tensor | None

    def __init__(self, layer: nn.Module, integers: Tensor) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not a submodule: its buffers are not the graph's
        self.levels = input_levels(layer)
        self.register_buffer("integers", integers)
        self.register_buffer("steps", cast(Tensor, layer.scale))
        register_optional(self, "shift", cast("Tensor | None", layer.bias))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)


class _Linear(_Form):
    """The weight is kept as (in, out), which is what an ONNX `MatMul` reads, unless another layer shares it."""

    def __init__(self, layer: nn.Module, shared: bool) -> None:
        weight = cast(Tensor, layer.weight)
        super().__init__(layer, weight if shared else weight.t().contiguous())
        self.shared = shared

    def forward(self, input: Tensor) -> Tensor:
        x = quantize_dequantize(input, *self.levels)
        weight = dequantize_weight(self.integers, self.steps, 0 if self.shared else 1)
        y = torch.matmul(x, weight.t() if self.shared else weight)
        return y if self.shift is None else y + self.shift


class _Conv(_Form):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer, cast(Tensor, layer.weight))
        names = ["stride", "padding", "dilation", "groups"]
        self.transposed = bool(getattr(layer, "transposed", False))
        if self.transposed:
            names.append("output_padding")
        self.settings = {name: getattr(layer, name) for name in names}
        self.convolution = (_TRANSPOSED if self.transposed else _CONVOLUTIONS)[self.integers.dim()]

    def forward(self, input: Tensor) -> Tensor:
        x = quantize_dequantize(input, *self.levels)
        weight = dequantize_weight(self.integers, self.steps, int(self.transposed))
        return self.convolution(x, weight, self.shift, **self.settings)


def _form(layer: nn.Module, shared: bool) -> nn.Module | None:
    if isinstance(layer, Int8Linear):
        return _Linear(layer, shared).eval()
    if isinstance(layer, Int8Conv) and not (layer.transposed and layer.groups > 1):  # there a scale has two axes
        return _Conv(layer).eval()
    return None


def _weights_with_many_owners(model: nn.Module) -> set[int]:
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            owners.setdefault(id(weight), set()).add(id(module))
    return {weight for weight, modules in owners.items() if len(modules) > 1}
