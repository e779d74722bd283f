"""Layer norm over the channels of an image, at each pixel.

Source: Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` for (batch, channels, height, width); the memory of the result has the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
