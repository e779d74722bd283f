"""Activation functions by the name that a config gives them.

Sources: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", arXiv:1606.08415 (GELU: exact, by tanh, and
x * sigmoid(1.702 x), which CLIP calls quick).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.nn.gelu import gelu


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), of x's shape and dtype."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu,
    "quick_gelu": quick_gelu,
}
"""`gelu` is the exact form."""
