"""Many gated feed-forward layers in one call: rows that lie sorted by expert, each expert with weights of its own.

torch's grouped matrix product serves bfloat16 on GPUs from Ampere on. Elsewhere an operator of ours computes one expert
after the other, so that its rows stay in the processor's cache from the first product to the last; compilers call it
as it is. Not here: who sorts the rows, and experts padded to one size (`moe`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = tuple[Tensor, Tensor, Tensor]


def gated_experts(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    """Return (rows, d_model): for each row of `x` its expert's `down @ (silu(gate @ row) * (up @ row))`.

    `gate`, `up`: (experts, d_ff, d_model), `down`: (experts, d_model, d_ff). `ends` (experts,) of int32 or int64: where
    each expert's rows end, rising, the last one equal to `rows`. Under autocast it computes in autocast's format.
    """
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, gate, up, down = x.to(dtype), gate.to(dtype), up.to(dtype), down.to(dtype)
    if _torch_has_a_kernel(x, gate):
        offsets = ends.to(torch.int32)
        gated = F.silu(F.grouped_mm(x, gate.mT, offs=offsets)) * F.grouped_mm(x, up.mT, offs=offsets)
        return F.grouped_mm(gated, down.mT, offs=offsets)
    out: Tensor = _forward(x, gate, up, down, ends)[0]
    return out


def _torch_has_a_kernel(x: Tensor, gate: Tensor) -> bool:
    if x.device.type != "cuda" or gate.dtype != torch.bfloat16 or gate.shape[1] % 8 or gate.shape[2] % 8:
        return False  # the kernel wants rows that begin at a multiple of 16 bytes
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


@torch.library.custom_op(
    "deepseek::gated_experts",
    mutates_args=(),
    schema="(Tensor x, Tensor gate, Tensor up, Tensor down, Tensor ends) -> (Tensor, Tensor, Tensor)",
)
def _forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor) -> Tensors:
    """Return the output (rows, d_model), and for the backward pass the products with gate and up (rows, d_ff)."""
    out, gates, ups = _shapes(x, gate, up, down, ends)
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            rows, here = x[start:end], slice(start, end)
            torch.mm(rows, gate[expert].t(), out=gates[here])
            torch.mm(rows, up[expert].t(), out=ups[here])
            torch.mm(F.silu(gates[here]).mul_(ups[here]), down[expert].t(), out=out[here])
        start = end
    return out, gates, ups


@torch.library.custom_op(
    "deepseek::gated_experts_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor gate, Tensor up, Tensor down, Tensor ends, Tensor gates, Tensor ups)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor, gates: Tensor, ups: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, gate, up and down."""
    x_grad, gate_grad, up_grad, down_grad = (torch.empty_like(value) for value in (x, gate, up, down))
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end == start:
            for weight_grad in (gate_grad, up_grad, down_grad):
                weight_grad[expert].zero_()
            continue
        here, start = slice(start, end), end
        rows, upper, out_grad = x[here], ups[here], grad[here]
        silu = F.silu(gates[here])
        torch.mm(out_grad.t(), silu * upper, out=down_grad[expert])
        product_grad = out_grad @ down[expert]
        silu_grad = torch.ops.aten.silu_backward(product_grad * upper, gates[here])
        upper_grad = product_grad.mul_(silu)
        torch.mm(silu_grad.t(), rows, out=gate_grad[expert])
        torch.mm(upper_grad.t(), rows, out=up_grad[expert])
        torch.mm(silu_grad, gate[expert], out=x_grad[here])
        x_grad[here].addmm_(upper_grad, up[expert])
    return x_grad, gate_grad, up_grad, down_grad


@_forward.register_fake
def _shapes(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor) -> Tensors:
    rows, d_ff = x.shape[0], gate.shape[1]
    return x.new_empty(rows, down.shape[1]), x.new_empty(rows, d_ff), x.new_empty(rows, d_ff)


@_backward.register_fake
def _shapes_backward(
    grad: Tensor, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor, gates: Tensor, ups: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gate), torch.empty_like(up), torch.empty_like(down)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensors) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad: Tensor, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_backward(grad.contiguous(), *ctx.saved_tensors), None)


_forward.register_autograd(_gradients, setup_context=_keep)
