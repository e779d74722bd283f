"""TensorFlow's "SAME" padding: a convolution of stride s turns n pixels into ceil(n / s).

Where the padding is odd, the extra pixel goes to the end (bottom, right); PyTorch's own padding has equal sides and
reads other pixels where the stride is 2 and the size even. Weights trained with one kind want that kind.
Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def same_padding(size: int, kernel_size: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return how many pixels go before and after `size` pixels."""
    rest = -size % stride
    total = max((kernel_size - 1) * dilation + 1 - stride + rest, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel_size: int, stride: int, dilation: int = 1) -> Tensor:
    """Return x (batch, channels, height, width) with zeros around it, ready for a convolution without padding."""
    rows = same_padding(x.shape[-2], kernel_size, stride, dilation)
    columns = same_padding(x.shape[-1], kernel_size, stride, dilation)
    return F.pad(x, (*columns, *rows))
