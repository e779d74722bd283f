"""AWQ: inputs that carry much are scaled down and their weights up before rounding, so that those lose less.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv:2306.00978, section 3.2: the scale of an input is its mean magnitude to a power, and the power is searched. Not
here: clipping of weights (the paper's second step).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.nn.int4_weights import choose_scales, dequantize_levels, round_to_levels
from deepseek.quantization.gptq import second_moments

STEPS = 20
"""Powers tried between 0 (round-to-nearest) and 1."""
_LEAST = 1e-4


class ScaledLevels(NamedTuple):
    """A rounded weight that expects its input times `input_multiplier` fp32 `(width,)`; None if plain rounding won."""

    levels: Tensor
    scale: Tensor
    zero_point: Tensor | None
    input_multiplier: Tensor | None


def awq_levels(weight: Tensor, inputs: Tensor, group_size: int | None, symmetric: bool) -> ScaledLevels:
    """Return the levels of `weight` `(rows, width)` whose outputs on `inputs` `(samples, width)` differ least.

    The error is that of the whole product, computed from the inputs' second moments. Never worse than
    round-to-nearest, which is one of the candidates.
    """
    values, moments = weight.detach().to(torch.float32), second_moments(inputs)
    magnitude = inputs.detach().to(torch.float32).abs().mean(dim=0).clamp_min(_LEAST)
    best, least = None, float("inf")
    for step in range(STEPS):
        factor = magnitude ** (step / STEPS)
        factor = factor / (factor.amax() * factor.amin()).sqrt()
        candidate = values * factor
        scale, zero_point = choose_scales(candidate, group_size, symmetric)
        levels = round_to_levels(candidate, scale, zero_point, group_size)
        meant = dequantize_levels(levels, scale, zero_point, group_size) / factor
        error = output_error(values - meant, moments)
        if error < least:
            least, best = error, ScaledLevels(levels, scale, zero_point, None if step == 0 else 1 / factor)
    if best is None:  # every error was not a number; the caller has checked weights and inputs
        scale, zero_point = choose_scales(values, group_size, symmetric)
        return ScaledLevels(round_to_levels(values, scale, zero_point, group_size), scale, zero_point, None)
    return best


def output_error(difference: Tensor, moments: Tensor) -> float:
    """Return the mean over inputs of the squared error of the outputs, summed over rows, for a weight difference."""
    exact = difference.to(torch.float64)
    return float((exact @ moments * exact).sum())
