"""AdamW in less memory: states of 8 or 16 bits, and bfloat16 weights whose updates are rounded stochastically.

Bytes a weight for weight, gradient and states: 16 for AdamW in float32, 10 with 8-bit states, 8 for bfloat16 weights
with bfloat16 states, 6 with 8-bit ones. The arithmetic of every update is float32.
Sources: AdamW, Loshchilov & Hutter 2019, arXiv:1711.05101; 8-bit states, `block_codes.py`; rounding, `rounding.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.hardware import keep_freed_memory
from deepseek.optim.block_codes import BLOCK, decode, encode
from deepseek.optim.exact_state import ExactStateOptimizer
from deepseek.optim.rounding import RoundingNoise, round_stochastically

StateBits = Literal[8, 16, 32]

SMALLEST_CODED = 4096
"""Tensors of fewer numbers keep float32 states: they cost little, and vectors are the most sensitive."""

_PIECE = 1 << 17
"""Numbers updated at a time on a CPU: all they need stays in the second-level cache."""


class LeanAdamW(ExactStateOptimizer):
    """AdamW whose states take `state_bits` a number: 8 (block-wise codes), 16 (bfloat16) or 32.

    Weights are float32 or bfloat16; those in bfloat16 are rounded stochastically with torch's global random numbers,
    which a checkpoint holds. A scalar tensor in the attribute `grad_scale` divides the gradients, as in torch's fused
    AdamW. Raises ConfigError for other weights or bits.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        state_bits: StateBits = 8,
    ) -> None:
        if state_bits not in (8, 16, 32):
            raise ConfigError("optimizer states of this size", found=f"{state_bits} bits", wanted="8, 16 or 32")
        if not (lr >= 0 and eps > 0 and weight_decay >= 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ConfigError(
                "AdamW can't run with these settings",
                found=f"lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}",
                wanted="lr and weight_decay of at least 0, betas from 0 to below 1, eps above 0",
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.state_bits = state_bits
        keep_freed_memory()  # a step asks for the same few pieces of memory thousands of times
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dtype not in (torch.float32, torch.bfloat16):
                    raise ConfigError(
                        "these weights can't be trained with lean states",
                        found=str(parameter.dtype),
                        wanted="float32 or bfloat16",
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        noise = RoundingNoise()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, noise)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], noise: RoundingNoise) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            bits = self.state_bits if parameter.numel() >= SMALLEST_CODED else 32
            for name in ("exp_avg", "exp_avg_sq"):
                state |= _empty_state(name, parameter, bits)
        state["step"] += 1
        weights = parameter if parameter.is_contiguous() else parameter.contiguous()
        flat, gradient = weights.view(-1), _contiguous(parameter.grad, parameter)
        scale = getattr(self, "grad_scale", None)
        piece = _PIECE if parameter.device.type == "cpu" else parameter.numel()
        for start in range(0, flat.numel(), piece):
            end = min(start + piece, flat.numel())
            part = _pieces(state, start, end)
            _adamw(flat[start:end], gradient[start:end], part, group, int(state["step"]), scale, noise)
        if weights is not parameter:
            parameter.copy_(weights)


def state_bytes_per_number(bits: StateBits, numbers: int) -> float:
    """Return the bytes that the two states of a tensor of `numbers` numbers take for each."""
    if numbers < SMALLEST_CODED or bits == 32:
        return 8.0
    return 4.0 if bits == 16 else 2.0 + 2 * 4 * math.ceil(numbers / BLOCK) / numbers


def _empty_state(name: str, parameter: Tensor, bits: int) -> dict[str, Tensor]:
    device, numbers = parameter.device, parameter.numel()
    if bits == 8:
        zero = decode_zero(signed=name == "exp_avg")
        return {
            f"{name}_codes": torch.full((numbers,), zero, dtype=torch.uint8, device=device),
            f"{name}_scales": torch.zeros(math.ceil(numbers / BLOCK), device=device),
        }
    dtype = torch.bfloat16 if bits == 16 else torch.float32
    return {name: torch.zeros(numbers, dtype=dtype, device=device)}


def decode_zero(*, signed: bool) -> int:
    """Return the code of 0: the middle of the signed table, the first of the unsigned one."""
    return 127 if signed else 0


def _contiguous(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    if gradient is None or gradient.is_sparse:
        raise ConfigError("lean states need dense gradients", fix="use nn.Embedding with sparse=False")
    return gradient.contiguous().view(-1)


def _pieces(state: dict[str, Any], start: int, end: int) -> dict[str, Tensor]:
    """Return the part of each state that belongs to the numbers from `start` to `end`; `start` begins a block."""
    cut = {}
    for name, value in state.items():
        if name != "step":
            scales = name.endswith("_scales")
            cut[name] = value[start // BLOCK : math.ceil(end / BLOCK)] if scales else value[start:end]
    return cut


def _adamw(
    weights: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    step: int,
    scale: Tensor | None,
    noise: RoundingNoise,
) -> None:
    """Update a piece of the weights and its states, in place."""
    beta1, beta2 = group["betas"]
    gradient = gradient.float() if scale is None else gradient.float() / scale.to(gradient.device)
    mean, square = _read(state, "exp_avg"), _read(state, "exp_avg_sq")
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    divisor = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    exact = weights if weights.dtype is torch.float32 else weights.float()
    exact.mul_(1 - group["lr"] * group["weight_decay"])
    exact.addcdiv_(mean, divisor, value=-group["lr"] / (1 - beta1**step))
    if exact is not weights:
        round_stochastically(exact, noise.draw(weights.numel(), weights.device), weights)
    _write(state, "exp_avg", mean, None)
    _write(state, "exp_avg_sq", square, noise)


def _read(state: dict[str, Tensor], name: str) -> Tensor:
    if name in state:
        return state[name] if state[name].dtype is torch.float32 else state[name].float()
    return decode(state[f"{name}_codes"], state[f"{name}_scales"], signed=name == "exp_avg")


def _write(state: dict[str, Tensor], name: str, values: Tensor, noise: RoundingNoise | None) -> None:
    """Store a state; with `noise` rounded by chance, for the squares move by less than the last bit of a bfloat16."""
    if name not in state:
        encode(values, state[f"{name}_codes"], state[f"{name}_scales"], signed=name == "exp_avg")
    elif state[name].dtype is torch.bfloat16:
        if noise is None:
            state[name].copy_(values)
        else:
            round_stochastically(values, noise.draw(values.numel(), values.device), state[name])
