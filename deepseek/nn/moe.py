"""Mixture of experts: every token is computed by a few of many small feed-forward layers, and by some shared ones.

Tokens are sorted by expert and multiplied group by group; no token waits for padding and none is dropped, unless a
capacity is asked for, and then the choices left out are counted. Not here: the choice itself (`router`).
Source: Dai et al. 2024, "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language Models",
arXiv:2401.06066. Counterparts: `DeepseekV2Moe` and `DeepseekV3MoE` of transformers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.grouped_linear import grouped_linear
from deepseek.nn.moe_config import MoEConfig
from deepseek.nn.router import Router, Routing


class MoEStatistics(NamedTuple):
    """What a mixture of experts says besides its output."""

    routing: Routing
    """Each token's choice."""
    dropped: Tensor
    """How many choices found their expert full: a scalar of int64, 0 without `capacity_factor`."""


class Experts(nn.Module):
    """`num_experts` gated feed-forward layers without bias, their weights stacked."""

    def __init__(self, num_experts: int, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.up = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.down = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew as `nn.Linear` does: uniform within 1 / sqrt(in_features)."""
        for weight in (self.gate, self.up, self.down):
            bound = weight.shape[2] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, routing: Routing, capacity: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of each token's experts (tokens, d_model) and the number of dropped choices.

        `x`: (tokens, d_model), `routing` of the same tokens. At most `capacity` tokens an expert.
        """
        if capacity is not None:
            return self._bounded(x, routing, capacity)
        none = torch.zeros((), dtype=torch.int64, device=x.device)
        if torch.compiler.is_exporting():
            return self._all_experts(x, routing), none
        chosen = routing.experts.flatten()  # choice c belongs to token c // top_k
        order = chosen.argsort(stable=True)
        ends = torch.searchsorted(chosen[order], self._numbers(x), right=True)
        rows = x.index_select(0, order // routing.experts.shape[-1])
        gated = F.silu(grouped_linear(rows, self.gate, ends)) * grouped_linear(rows, self.up, ends)
        return _combined(grouped_linear(gated, self.down, ends), order, routing.weights), none

    def _all_experts(self, x: Tensor, routing: Routing) -> Tensor:
        """Compute every token with every expert: plain products that every runtime of exported models knows."""
        gated = F.silu(x @ self.gate.mT) * (x @ self.up.mT)  # (experts, tokens, d_ff)
        weights = torch.zeros_like(routing.scores).scatter(-1, routing.experts, routing.weights)
        out = (gated @ self.down.mT).permute(1, 2, 0) @ weights.to(x.dtype)[..., None]
        return out[..., 0]

    def _bounded(self, x: Tensor, routing: Routing, capacity: int) -> tuple[Tensor, Tensor]:
        num_experts, d_model = self.gate.shape[0], x.shape[1]
        chosen = routing.experts.flatten()
        order = routing.weights.detach().flatten().argsort(descending=True, stable=True)
        order = order[chosen[order].argsort(stable=True)]  # by expert, and there the largest weight first
        expert = chosen[order]
        place = torch.arange(order.shape[0], device=x.device) - torch.searchsorted(expert, expert)
        kept = place < capacity
        slot = torch.where(kept, expert * capacity + place, num_experts * capacity)  # the last slot is for the dropped
        rows = x.index_select(0, order // routing.experts.shape[-1])
        filled = x.new_zeros(num_experts * capacity + 1, d_model).index_copy(0, slot, rows)
        batches = filled[:-1].view(num_experts, capacity, d_model)
        gated = F.silu(batches @ self.gate.mT) * (batches @ self.up.mT)
        out = F.pad((gated @ self.down.mT).flatten(0, 1), (0, 0, 0, 1)).index_select(0, slot)
        return _combined(out, order, routing.weights), (~kept).sum()

    def _numbers(self, x: Tensor) -> Tensor:
        return torch.arange(self.gate.shape[0], device=x.device)


class MoE(nn.Module):
    """Routed and shared experts over (batch, time, d_model)."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(d_model, config)
        self.experts = Experts(config.num_experts, d_model, config.d_ff)
        self.shared = GatedFeedForward(d_model, config.num_shared * config.d_ff) if config.num_shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, MoEStatistics]:
        """Return the output for `x` (batch, time, d_model), of its shape, and how the tokens chose."""
        routing = self.router(x)
        tokens = x.flatten(0, 1)
        flat = Routing(*(part.flatten(0, 1) for part in routing))
        hidden, dropped = self.experts(tokens, flat, self._capacity(tokens.shape[0]))
        hidden = hidden.view(x.shape).to(x.dtype)
        if self.shared is not None:
            hidden = hidden + self.shared(x)
        return hidden, MoEStatistics(routing, dropped)

    def _capacity(self, tokens: int) -> int | None:
        config = self.config
        if config.capacity_factor is None or not self.training:
            return None
        return math.ceil(config.capacity_factor * tokens * config.top_k / config.num_experts)


def _combined(out: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Bring rows (tokens * top_k, d_model) back from `order` and add up each token's, weighted: (tokens, d_model)."""
    by_token = torch.zeros_like(out).index_copy(0, order, out).view(*weights.shape, -1)
    return (weights.to(out.dtype)[:, None] @ by_token)[:, 0]
