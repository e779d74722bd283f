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

from deepseek.nn.gated_experts import gated_experts
from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.moe_config import MoEConfig
from deepseek.nn.router import Router, Routing, expert_load

MOST_PADDING = 2.0
"""Experts are padded to one number of tokens only where that makes at most so many times the tokens."""


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
        chosen = routing.experts.flatten()  # choice c belongs to token c // top_k
        if capacity is not None:
            by_weight = routing.weights.detach().flatten().argsort(descending=True, stable=True)
            order = by_weight[chosen[by_weight].argsort(stable=True)]  # by expert, and there the largest weight first
            return self._padded(x, routing, order, capacity)
        none = torch.zeros((), dtype=torch.int64, device=x.device)
        if torch.compiler.is_exporting():
            return self._all_experts(x, routing), none
        order = chosen.argsort(stable=True)
        if not torch.compiler.is_compiling() and _pads_well(x, self.gate):
            largest = int(expert_load(chosen, self.gate.shape[0]).max())
            if largest * self.gate.shape[0] <= MOST_PADDING * order.shape[0]:
                return self._padded(x, routing, order, largest)
        ends = torch.searchsorted(chosen[order], self._numbers(x), right=True)
        rows = x.index_select(0, order // routing.experts.shape[-1])
        out = gated_experts(rows, self.gate, self.up, self.down, ends)
        return _combined(out, order, routing.weights), none

    def _all_experts(self, x: Tensor, routing: Routing) -> Tensor:
        """Compute every token with every expert: plain products that every runtime of exported models knows."""
        gated = F.silu(x @ self.gate.mT) * (x @ self.up.mT)  # (experts, tokens, d_ff)
        weights = torch.zeros_like(routing.scores).scatter(-1, routing.experts, routing.weights)
        out = (gated @ self.down.mT).permute(1, 2, 0) @ weights.to(x.dtype)[..., None]
        return out[..., 0]

    def _padded(self, x: Tensor, routing: Routing, order: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Compute the choices in `order`, sorted by expert, in a batch of `capacity` rows for each expert.

        Rows that nobody needs hold the first token; nothing reads what comes of them.
        """
        num_experts, top_k = self.gate.shape[0], routing.experts.shape[-1]
        expert = routing.experts.flatten()[order]
        place = torch.arange(order.shape[0], device=x.device) - torch.searchsorted(expert, expert)
        slot = torch.where(place < capacity, expert * capacity + place, num_experts * capacity)  # the last: dropped
        token = torch.zeros(num_experts * capacity + 1, dtype=torch.int64, device=x.device)
        rows = x.index_select(0, token.scatter(0, slot, order // top_k)[:-1]).view(num_experts, capacity, -1)
        out = self._batched(rows).flatten(0, 1)
        of_choice = torch.empty_like(slot).scatter(0, order, slot)
        kept = (of_choice < out.shape[0]).view_as(routing.weights)
        by_token = out.index_select(0, of_choice.clamp(max=out.shape[0] - 1))
        by_token = by_token.view(routing.weights.shape + out.shape[1:])
        return _weighted_sum(by_token, routing.weights * kept), (~kept).sum()

    def _batched(self, rows: Tensor) -> Tensor:
        """Return (experts, capacity, d_model) for `rows` of that shape."""
        if not torch.is_grad_enabled():
            return (F.silu(rows @ self.gate.mT) * (rows @ self.up.mT)) @ self.down.mT
        columns = rows.mT  # weight @ columns: so the gradient of the weight comes out in the weight's own layout
        return (self.down @ (F.silu(self.gate @ columns) * (self.up @ columns))).mT

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


def _pads_well(x: Tensor, weight: Tensor) -> bool:
    """Return whether experts padded to one size, in one product, beat one product each: on a CPU in 16-bit formats.

    There a small product takes less time than its call; in float32 it is the other way round (docs/log.md).
    """
    if x.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    return dtype in (torch.bfloat16, torch.float16)


def _combined(out: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Bring rows (tokens * top_k, d_model) back from `order` and add up each token's, weighted: (tokens, d_model)."""
    return _weighted_sum(torch.zeros_like(out).index_copy(0, order, out).view(weights.shape + out.shape[1:]), weights)


def _weighted_sum(by_token: Tensor, weights: Tensor) -> Tensor:
    """Return (tokens, d_model): the weighted sum over the choices of `by_token` (tokens, top_k, d_model)."""
    return (weights.to(by_token.dtype)[:, None] @ by_token)[:, 0]
