"""Many linear layers in one call: rows that lie sorted by group, each group with a weight of its own.

torch's grouped matrix product serves bfloat16 on GPUs from Ampere on. Elsewhere it can't be compiled (its shape rules
know bfloat16 alone), so an operator of ours multiplies the groups' rows one group after the other; compilers call it
as it is. Not here: who sorts the rows (`moe`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return (rows, out_features): row r of `x` (rows, in_features) times the weight of its group, transposed.

    `weight`: (groups, out_features, in_features). `ends` (groups,) of int32 or int64: where each group's rows end,
    rising, the last one equal to `rows`. Under autocast the product is in autocast's number format.
    """
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    if _torch_has_a_kernel(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
    out: Tensor = _by_group(x, weight, ends)
    return out


def _torch_has_a_kernel(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cuda" or weight.dtype != torch.bfloat16 or weight.shape[1] % 8 or weight.shape[2] % 8:
        return False  # the kernel wants rows that begin at a multiple of 16 bytes
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


@torch.library.custom_op(
    "deepseek::grouped_linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor ends) -> Tensor"
)
def _by_group(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out, start = x.new_empty(x.shape[0], weight.shape[1]), 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[group].t(), out=out[start:end])
        start = end
    return out


@torch.library.custom_op(
    "deepseek::grouped_linear_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor ends) -> (Tensor, Tensor)",
)
def _by_group_backward(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    x_grad, weight_grad, start = x.new_empty(x.shape), weight.new_empty(weight.shape), 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(grad[start:end], weight[group], out=x_grad[start:end])
            torch.mm(grad[start:end].t(), x[start:end], out=weight_grad[group])
        else:
            weight_grad[group].zero_()
        start = end
    return x_grad, weight_grad


@_by_group.register_fake
def _shape(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_by_group_backward.register_fake
def _shape_backward(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x_grad, weight_grad = _by_group_backward(grad, *ctx.saved_tensors)
    return x_grad, weight_grad, None


_by_group.register_autograd(_gradients, setup_context=_keep)
