"""Layer norms whose scale and shift come from a condition, and the gated block built on them (adaLN-zero).

Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748, section 3.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.encoder_block import MLP, SelfAttention
from deepseek.nn.gelu import gelu


class AdaptiveNorm(nn.Module):
    """A layer norm without weights; a linear layer of the condition gives its shift, its scale and further vectors.

    Started at zero (`init_zero`), it is a plain layer norm and every further vector is zero.
    """

    def __init__(self, d_model: int, *, num_vectors: int = 2, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.d_model = d_model
        self.num_vectors = num_vectors
        self.norm_eps = norm_eps
        self.modulation = nn.Linear(d_model, num_vectors * d_model)

    def init_zero(self) -> None:
        """Set the linear layer to zero."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def vectors(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return `num_vectors` tensors (batch, 1, d_model) for `condition` (batch, d_model)."""
        made: Tensor = self.modulation(F.silu(condition))
        return made[:, None].chunk(self.num_vectors, dim=-1)

    def normalise(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Return norm(x) * (1 + scale) + shift."""
        return F.layer_norm(x, (self.d_model,), eps=self.norm_eps) * (1 + scale) + shift

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return x (batch, time, d_model) normalised, shifted and scaled by `condition` (batch, d_model)."""
        shift, scale = self.vectors(condition)[:2]
        return self.normalise(x, shift, scale)


class AdaptiveBlock(nn.Module):
    """Attention, then feed-forward, each normalised, scaled, shifted and gated by the condition.

    With the gates at zero, where training starts, the block returns its input.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = AdaptiveNorm(d_model, num_vectors=6, norm_eps=norm_eps)
        self.attention = SelfAttention(d_model, num_heads)
        self.feed_forward = MLP(d_model, d_ff, activation=gelu)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, time, d_model) for x of that shape and `condition` (batch, d_model)."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm.vectors(condition)
        x = x + gate * self.attention(self.norm.normalise(x, shift, scale))
        out: Tensor = x + gate_ff * self.feed_forward(self.norm.normalise(x, shift_ff, scale_ff))
        return out
