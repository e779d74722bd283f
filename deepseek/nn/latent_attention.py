"""Multi-head latent attention: keys and values of all heads come from one narrow latent vector of each token.

Positions are turned in a part of queries and keys of their own (decoupled RoPE), of which the key part is shared by all
heads; so latent and turned part are all that a cache keeps. Behind a cached text the up-projection moves from the keys
to the queries and the output, and no head's keys or values are ever unpacked.
Source: DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
arXiv:2405.04434, section 2.1. Counterparts: the attention of transformers' DeepSeek V2 and V3.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.nn.dot_product_attention import attention
from deepseek.nn.latent_cache import LatentCache
from deepseek.nn.rotary import Rotation, rotate_halves, rotate_pairs
from deepseek.nn.row_experts import RowLatentUp

_EPS = 1e-6  # of the norms on the latents, in the published code whatever the config says


class LatentAttentionConfig(Config):
    """Sizes of latent attention."""

    query_rank: int | None = Field(default=None, ge=1, le=1 << 16)
    """Width of the latent that queries come from; null projects them from the input at once."""
    kv_rank: int = Field(default=512, ge=1, le=1 << 16)
    """Width of the latent that keys and values come from."""
    plain_dim: int = Field(default=128, ge=1, le=1 << 14)
    """Dimensions of a head's queries and keys without positions."""
    rotary_dim: int = Field(default=64, ge=2, le=1 << 14, multiple_of=2)
    """Dimensions of a head's queries and keys that carry the position; the keys' part is one for all heads."""
    value_dim: int = Field(default=128, ge=1, le=1 << 14)
    """Dimensions of a head's values."""
    pairs: bool = True
    """Neighbouring dimensions are turned together; false: dimension i and i + rotary_dim / 2."""


class LatentAttention(nn.Module):
    """Causal self-attention over (batch, time, d_model). `score_factor` multiplies the scores (YaRN)."""

    def __init__(
        self, d_model: int, num_heads: int, config: LatentAttentionConfig, *, score_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.config, self.num_heads = config, num_heads
        query_dim = config.plain_dim + config.rotary_dim
        self.scale = query_dim**-0.5 * score_factor
        if config.query_rank is None:
            self.query = nn.Linear(d_model, num_heads * query_dim, bias=False)
        else:
            self.query_down = nn.Linear(d_model, config.query_rank, bias=False)
            self.query_norm = nn.RMSNorm(config.query_rank, eps=_EPS)
            self.query_up = nn.Linear(config.query_rank, num_heads * query_dim, bias=False)
        self.kv_down = nn.Linear(d_model, config.kv_rank + config.rotary_dim, bias=False)
        self.kv_norm = nn.RMSNorm(config.kv_rank, eps=_EPS)
        self.kv_up = nn.Linear(config.kv_rank, num_heads * (config.plain_dim + config.value_dim), bias=False)
        self.out = nn.Linear(num_heads * config.value_dim, d_model, bias=False)

    def forward(
        self, x: Tensor, turn: Rotation, mask: Tensor | None = None, cache: LatentCache | None = None, layer: int = 0
    ) -> Tensor:
        """Return (batch, time, d_model). `turn`: the rotation of x's positions; `mask` stands in for the causal one.

        With `cache`, this layer's latents are stored there as `layer`, and those before are looked at.
        """
        config, rotate = self.config, rotate_pairs if self.config.pairs else rotate_halves
        plain, turned = torch.split(self._queries(x), [config.plain_dim, config.rotary_dim], dim=-1)
        turned = rotate(turned, turn)  # (batch, num_heads, time, rotary_dim)
        narrow, shared_key = torch.split(self.kv_down(x), [config.kv_rank, config.rotary_dim], dim=-1)
        latent, shared_key = _normed(self.kv_norm, narrow), rotate(shared_key, turn)
        if cache is not None and self._looks_at_latents(cache):
            y = self._attend_to_latents(plain, turned, torch.cat([latent, shared_key], dim=-1), cache, layer)
        else:
            if cache is not None:
                stored = cache.append(layer, torch.cat([latent, shared_key], dim=-1))
                latent, shared_key = torch.split(stored, [config.kv_rank, config.rotary_dim], dim=-1)
            y = self._attend(plain, turned, latent, shared_key, mask)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _queries(self, x: Tensor) -> Tensor:
        """Return (batch, num_heads, time, plain_dim + rotary_dim)."""
        if self.config.query_rank is None:
            query = self.query(x)
        else:
            query = self.query_up(_normed(self.query_norm, self.query_down(x)))
        heads: Tensor = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def _attend(self, plain: Tensor, turned: Tensor, latent: Tensor, shared_key: Tensor, mask: Tensor | None) -> Tensor:
        """Unpack the keys and values of all heads; the cheaper way where there are as many queries as keys."""
        unpacked = self.kv_up(latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        plain_key, value = torch.split(unpacked, [self.config.plain_dim, self.config.value_dim], dim=-1)
        key = torch.cat([plain_key, shared_key[:, None].expand(-1, self.num_heads, -1, -1)], dim=-1)
        return attention(torch.cat([plain, turned], dim=-1), key, value, mask, causal=True, scale=self.scale)

    def _looks_at_latents(self, cache: LatentCache) -> bool:
        """Return whether the stored latents are looked at as they are, and not unpacked.

        A layer in kv_up's place, a quantized one say, need not have the weight as it is: its answers are used.
        """
        return not cache.whole or (cache.length > 0 and type(self.kv_up) is nn.Linear)

    def _attend_to_latents(
        self, plain: Tensor, turned: Tensor, latents: Tensor, cache: LatentCache, layer: int
    ) -> Tensor:
        """Let the latents be the one head of keys and values; the cheaper way for few queries and many keys."""
        key = latents[:, None]
        value = key[..., : self.config.kv_rank]
        if isinstance(self.kv_up, RowLatentUp):
            query = torch.cat([self.kv_up.to_latents(plain), turned], dim=-1)
            return self.kv_up.to_values(cache.attend(layer, query, key, value, self.scale))
        # (num_heads, plain_dim + value_dim, kv_rank)
        weight = self.kv_up.weight if type(self.kv_up) is nn.Linear else cache.remembered(layer, self._up_weight)
        heads = torch.unflatten(weight, 0, (self.num_heads, -1))
        key_up, value_up = torch.split(heads, [self.config.plain_dim, self.config.value_dim], dim=1)
        query = torch.cat([plain @ key_up, turned], dim=-1)
        return cache.attend(layer, query, key, value, self.scale) @ value_up.mT

    def _up_weight(self) -> Tensor:
        """Return the weight (num_heads * (plain_dim + value_dim), kv_rank) of a layer in kv_up's place.

        It is what the layer makes of each unit vector.
        """
        norm = self.kv_norm.weight
        units = torch.eye(self.config.kv_rank, dtype=norm.dtype, device=norm.device)
        weight: Tensor = self.kv_up(units).mT.contiguous()
        return weight


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Normalise in the weight's number format, which is the wider one under autocast."""
    out: Tensor = norm(x.to(norm.weight.dtype))
    return out
