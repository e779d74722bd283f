"""One case of `binary`: a layer in binary, fp32, bf16 and int8, timed in turns in one process.

`python -m benchmarks.children.binary_run CASE RESULT`. The peers are eager torch on the layout that suits them: fp32
and bf16 (inputs in bf16 already), and oneDNN's int8 kernels on inputs that are quantized already, which is more than
they get in a model. Ours starts from fp32: signs, scales and packing are inside its time. Times are in
milliseconds, the quickest of each form's turns: a layer is over sooner than the system takes to schedule.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.children.models_run import in_turns
from deepseek.nn.binary_kernel import describe_kernel
from deepseek.nn.binary_layers import BinaryConv2d, BinaryLinear

SECONDS = 3.0
_INT8_SCALE, _INT8_ZERO = 0.02, 128


class Case(NamedTuple):
    """A convolution (3 x 3, padding 1) of `size` x `size` pixels, or a linear layer where that is 0."""

    batch: int
    inputs: int
    outputs: int
    size: int = 0


CASES = {
    "conv 64, 56x56, batch 1": Case(1, 64, 64, 56),
    "conv 128, 28x28, batch 1": Case(1, 128, 128, 28),
    "conv 256, 14x14, batch 1": Case(1, 256, 256, 14),
    "conv 512, 7x7, batch 1": Case(1, 512, 512, 7),
    "conv 256, 14x14, batch 8": Case(8, 256, 256, 14),
    "linear 768-3072, 128 rows": Case(128, 768, 3072),
    "linear 3072-768, 128 rows": Case(128, 3072, 768),
    "linear 4096-4096, 1 row": Case(1, 4096, 4096),
}


def run(case: Case, seconds: float = SECONDS) -> dict[str, object]:
    """Time all forms of the layer; the value is the milliseconds of the binary one."""
    torch.manual_seed(0)
    layer, x = _layer_and_input(case)
    binary = BinaryLinear.from_linear(layer) if isinstance(layer, nn.Linear) else BinaryConv2d.from_conv(layer)
    half, x_half = copy.deepcopy(layer).to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.no_grad():
        found = binary(x)
        forms: dict[str, Callable[[], object]] = {
            "binary": lambda: binary(x),
            "fp32": lambda: layer(x),
            "bf16": lambda: half(x_half),
            "int8": _int8(layer, x),
        }
        times = dict(zip(forms, in_turns(list(forms.values()), seconds), strict=True))
    simulated = binary(x.clone().requires_grad_()).detach()  # the same layer in floating point
    ms = {name: min(values) for name, values in times.items()}
    return {
        "value": ms["binary"],
        "outputs": {
            **{f"{name}_ratio": ms[name] / ms["binary"] for name in ("fp32", "bf16", "int8")},
            "different": float((found != simulated).sum()),
            "size_ratio": _bytes(layer) / _bytes(binary),
        },
        "details": {"kernel": describe_kernel(), "ms": times},
    }


def _layer_and_input(case: Case) -> tuple[nn.Linear | nn.Conv2d, Tensor]:
    if not case.size:
        return nn.Linear(case.inputs, case.outputs).eval(), torch.randn(case.batch, case.inputs)
    conv = nn.Conv2d(case.inputs, case.outputs, 3, padding=1, bias=False).eval()
    x = torch.randn(case.batch, case.inputs, case.size, case.size)
    return conv.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a module's overload lacks it


def _int8(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    """Return a call of oneDNN's int8 kernel, fp32 out, its input quantized and its weight in order beforehand."""
    weight = layer.weight.detach()
    scale = weight.flatten(1).abs().amax(dim=1) / 127
    integers = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).to(torch.int8)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    values = (torch.round(x / _INT8_SCALE) + _INT8_ZERO).clamp(0, 255).to(torch.uint8)
    onednn, given = torch.ops.onednn, (_INT8_SCALE, _INT8_ZERO)
    after: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
    if isinstance(layer, nn.Linear):
        packed = onednn.qlinear_prepack(integers, list(x.shape))
        return lambda: onednn.qlinear_pointwise(values, *given, packed, scale, zeros, layer.bias, *after)
    geometry = [1, 1], [1, 1], [1, 1], 1
    packed = onednn.qconv_prepack(integers, scale, *given, *geometry, list(x.shape))
    return lambda: onednn.qconv2d_pointwise(values, *given, packed, scale, zeros, None, *geometry, *after)


def _bytes(layer: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())


def main(argv: list[str]) -> None:
    """Run `CASE RESULT`."""
    name, result = argv
    Path(result).write_text(json.dumps(run(CASES[name])))


if __name__ == "__main__":
    main(sys.argv[1:])
