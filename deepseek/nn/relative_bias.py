"""T5's relative positions: a learned number for each head and bucket of distances, added to the attention scores.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
arXiv:1910.10683, section 2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def distance_bucket(offset: Tensor, num_buckets: int, max_distance: int, *, bidirectional: bool) -> Tensor:
    """Return the bucket of each offset (key position - query position), of its shape and of int64.

    Half of the buckets hold one small distance each, the others grow with the logarithm up to `max_distance`; all
    above share the last. With `bidirectional` the upper half of the buckets is for keys that come after the query;
    without, such keys count as distance 0.
    """
    start = torch.zeros_like(offset)
    if bidirectional:
        num_buckets //= 2
        start = (offset > 0).long() * num_buckets
        distance = offset.abs()
    else:
        distance = (-offset).clamp(min=0)
    exact = num_buckets // 2
    # the order of these steps decides in float32 on which side of a bucket's border a distance falls
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + growth.long()).clamp(max=num_buckets - 1)
    return start + torch.where(distance < exact, distance, far)


class RelativePositionBias(nn.Module):
    """The learned table: what to add to each head's scores at each distance. Shared by all layers of a stack."""

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, query_position: Tensor, key_position: Tensor) -> Tensor:
        """Return (1, num_heads, time, key_time) for positions (time,) and (key_time,) of int64."""
        offset = key_position[None, :] - query_position[:, None]
        bucket = distance_bucket(offset, self.num_buckets, self.max_distance, bidirectional=self.bidirectional)
        bias: Tensor = self.embedding(bucket).permute(2, 0, 1)[None]
        return bias
