"""Transformer-XL's attention: scores from content and from distance, over a segment and the memory before it.

Score of query i and key j, with R the sinusoids of the distance i - j and u, v two learned vectors of each head:
(W_q x_i + u) . W_k x_j  +  (W_q x_i + v) . W_r R_(i-j).
The second part is computed once for each distance and then shifted into place, not once for each pair.
Source: Dai et al. 2019, "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", arXiv:1901.02860,
section 3.3 and appendix B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.dot_product_attention import attention


class RelativeAttention(nn.Module):
    """Self-attention of (batch, time, d_model) over (batch, key_time, d_model), which ends with the same tokens."""

    def __init__(self, d_model: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.position = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, d_model // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, d_model // num_heads))

    def forward(self, x: Tensor, context: Tensor, encoding: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, time, d_model).

        `context`: the memory with `x` behind it. `encoding` (key_time, d_model): the sinusoids of the distances
        key_time - 1 down to 0. `mask` (time, key_time): boolean, True where a token may look; what comes after the
        token must be False, as there are no sinusoids for it.
        """
        parts = self.query(x), self.key(context), self.value(context), self.position(encoding)[None]
        query, key, value, distance = (self.heads(part) for part in parts)
        out: Tensor = self.out(self.attend(query, key, value, distance, mask))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor, distance: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the output layer reads, (batch, time, d_model), of projected parts, each as `heads` returns it.

        `query` has `time` tokens, `key` and `value` key_time, `distance` key_time of one batch row; `mask` as for
        `forward`, None for one token that looks at all keys: these may then be in any order that `distance` has too.
        """
        scale = query.shape[-1] ** -0.5
        by_content = query + self.content_bias[:, None].to(query.dtype)
        by_position = query + self.position_bias[:, None].to(query.dtype)
        scores = relative_shift(by_position @ distance.transpose(-1, -2)) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        dropout = self.dropout if self.training else 0.0
        y = attention(by_content, key, value, scores, dropout=dropout, scale=scale)
        return y.transpose(1, 2).flatten(2)

    def heads(self, x: Tensor) -> Tensor:
        """Return (batch, num_heads, time, head_dim) of (batch, time, d_model)."""
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2)


def relative_shift(scores: Tensor) -> Tensor:
    """Move scores by distance, key_time - 1 down to 0, to the keys at these distances; both (..., time, key_time).

    Row i of the result is row i of `scores`, moved left by time - 1 - i. The places of keys after the query hold
    scores of other rows: the caller masks them.
    """
    time, key_time = scores.shape[-2:]
    if time == 1:
        return scores
    padded = F.pad(scores, (1, 0)).reshape(*scores.shape[:-2], key_time + 1, time)
    return padded[..., 1:, :].reshape(*scores.shape[:-2], time, key_time)
