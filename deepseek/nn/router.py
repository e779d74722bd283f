"""The router of a mixture of experts: each token chooses its experts, and what keeps the choice balanced.

Two kinds of balance: an auxiliary loss (`load_balancing_loss`), or a bias on the choice that follows the load and
leaves the gradient alone (`MoEConfig.correction_bias`, `Router.update_correction_bias`).
Sources: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434 (softmax, groups); DeepSeek-AI 2024, "DeepSeek-V3 Technical
Report", arXiv:2412.19437 (sigmoid, sequence-wise loss); Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy
for Mixture-of-Experts", arXiv:2408.15664. Counterparts: the routers of transformers' DeepSeek V2 and V3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.moe_config import MoEConfig

_TINY = 1e-20  # in the published code: keeps weights that are all zero from dividing by zero


class Routing(NamedTuple):
    """The choice of each token; leading dims are those of the input."""

    weights: Tensor
    """(..., top_k): factors on the experts' outputs, float32."""
    experts: Tensor
    """(..., top_k): the chosen experts, int64."""
    scores: Tensor
    """(..., num_experts): scores of all experts, float32; a softmax, or a sigmoid each."""


class Router(nn.Module):
    """Token-choice top-k routing in float32, whatever the model's number format: near ties decide who computes.

    The weight is no `nn.Linear` for the same reason: quantization leaves it alone.
    """

    correction_bias: Tensor | None

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, d_model))
        if config.correction_bias:
            self.register_buffer("correction_bias", torch.zeros(config.num_experts))
        else:
            self.correction_bias = None  # torch.export miscounts buffers that are None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew as `nn.Linear` does: uniform within 1 / sqrt(d_model)."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Routing:
        """Choose experts for each token of `x` (..., d_model)."""
        return self.choose(_linear_float32(x, self.weight))

    def choose(self, logits: Tensor) -> Routing:
        """Choose experts by `logits` (..., num_experts), float32."""
        config = self.config
        scores = logits.softmax(-1) if config.scoring == "softmax" else logits.sigmoid()
        choice = scores.detach() if self.correction_bias is None else scores.detach() + self.correction_bias
        if config.top_groups < config.num_groups:
            choice = self._within_top_groups(choice)
        experts = choice.topk(config.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if config.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
        return Routing(weights * config.scale, experts, scores)

    def _within_top_groups(self, choice: Tensor) -> Tensor:
        """Set the scores (..., num_experts) outside of each token's best groups to -inf."""
        grouped = torch.unflatten(choice, -1, (self.config.num_groups, -1))
        best = 1 if self.config.scoring == "softmax" else 2
        rank = grouped.topk(best, dim=-1).values.sum(-1)
        allowed = rank.topk(self.config.top_groups, dim=-1).indices
        outside = torch.ones_like(rank, dtype=torch.bool).scatter(-1, allowed, False)
        return grouped.masked_fill(outside[..., None], -torch.inf).flatten(-2)

    @torch.no_grad()
    def update_correction_bias(self, load: Tensor, rate: float = 1e-3) -> None:
        """Move the bias of each expert by `rate`: up where its load is below the mean, down where above.

        `load` (num_experts,): tokens that each expert received in a training step; over several processes, their sum.
        Without a bias nothing happens.
        """
        if self.correction_bias is not None:
            load = load.to(self.correction_bias.device, torch.float32)
            self.correction_bias += rate * torch.sign(load.mean() - load)


def expert_load(experts: Tensor, num_experts: int) -> Tensor:
    """Return how often each expert was chosen (num_experts,), int64, from choices (..., top_k)."""
    chosen = experts.flatten()
    return torch.zeros(num_experts, dtype=torch.int64, device=experts.device).scatter_add(
        0, chosen, torch.ones_like(chosen)
    )


def load_balancing_loss(routing: Routing) -> Tensor:
    """Return the auxiliary loss of one layer, a scalar: 1 where every expert gets its equal share, more elsewhere.

    For each sequence the sum over experts of (share of the choices) * (mean normalised score), times num_experts; then
    the mean over sequences. DeepSeek-V3, equations 17 to 20. The routing comes from an input (batch, time, d_model).
    """
    scores, experts = routing.scores, routing.experts
    num_experts = scores.shape[-1]
    probabilities = scores / (scores.sum(-1, keepdim=True) + _TINY)
    chosen = experts.flatten(1)  # (batch, time * top_k)
    count = torch.zeros(chosen.shape[0], num_experts, device=scores.device)
    share = count.scatter_add(1, chosen, torch.ones_like(chosen, dtype=count.dtype)) / chosen.shape[1]
    return num_experts * (share * probabilities.mean(1)).sum(-1).mean()


def _linear_float32(x: Tensor, weight: Tensor) -> Tensor:
    x, weight, device = x.float(), weight.float(), x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return F.linear(x, weight)
    return F.linear(x, weight)
