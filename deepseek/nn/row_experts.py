"""Mixtures of experts and latent attention's up-projection for inference on few rows, by the kernel of `row_products`.

A row's result is the same to the bit whatever other rows there are: neither the choice of a token's experts nor what
they make of it depends on its company. Not here: layers of one weight (`row_linear`), whole blocks (`row_blocks`), and
which ones are swapped (`deepseek.serve.text.weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.nn.gated_feed_forward import GatedFeedForward
from deepseek.nn.int8_linear import register_optional
from deepseek.nn.moe import Experts
from deepseek.nn.router import Router, Routing
from deepseek.nn.row_linear import RowLinear
from deepseek.nn.row_products import Multiply, RowChain
from deepseek.nn.row_weight import GROUP, RowForm, RowWeight


class RowStack(nn.Module):
    """Weights of one size and form. State dict: `weight` and where the form has it `scale`, each with one dim more."""

    weight: Tensor
    scale: Tensor | None

    def __init__(self, weights: Sequence[RowWeight]) -> None:
        super().__init__()
        first = weights[0]
        self.form: RowForm = first.form
        self.out_features, self.in_features = first.out_features, first.in_features
        self.register_buffer("weight", torch.stack([weight.values for weight in weights]))
        scales = [weight.scale for weight in weights if weight.scale is not None]
        register_optional(self, "scale", torch.stack(scales) if scales else None)

    @classmethod
    def rounded(cls, weights: Tensor, form: RowForm) -> RowStack:
        """Return float `weights` (count, out, in) to the nearest; in int8 where 4 bits don't fit the inputs."""
        form = "int8" if form == "int4" and weights.shape[2] % GROUP else form
        return cls([RowWeight.rounded(weight, form) for weight in weights])

    def weights(self) -> list[RowWeight]:
        """Return the weights in their form."""
        scales: Sequence[Tensor | None] = [None] * len(self.weight) if self.scale is None else list(self.scale)
        parts, sizes = zip(self.weight, scales, strict=True), (self.out_features, self.in_features)
        return [RowWeight(self.form, *sizes, values, scale) for values, scale in parts]

    def dequantized_weight(self) -> Tensor:
        """Return the fp32 weights (count, out, in) that are meant."""
        return torch.stack([weight.rows() for weight in self.weights()])


class _Chained(nn.Module):
    """Has chains that know where the weights are: made at the first call, and anew after the weights moved."""

    _chains: list[RowChain] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._chains = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chains": None}


class RowExperts(_Chained):
    """`Experts` for inference: each expert that was chosen is one call for all of its tokens."""

    def __init__(self, experts: Experts, form: RowForm) -> None:
        super().__init__()
        self.gate = RowStack.rounded(experts.gate.detach(), form)
        self.up = RowStack.rounded(experts.up.detach(), form)
        self.down = RowStack.rounded(experts.down.detach(), form)

    def forward(self, x: Tensor, routing: Routing, capacity: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what `Experts` does of `x` (tokens, d_model); `capacity`, which is for training, drops none."""
        if self._chains is None:
            parts = zip(self.gate.weights(), self.up.weights(), self.down.weights(), strict=True)
            self._chains = [
                RowChain([Multiply(gate, 0, 1, activation="silu", up=up), Multiply(down, 1, 2)])
                for gate, up, down in parts
            ]
        order = routing.experts.flatten().argsort(stable=True)
        rows = x.to(torch.float32).index_select(0, order // routing.experts.shape[-1])
        wide, out = rows.new_empty(rows.shape[0], self.gate.out_features), torch.empty_like(rows)
        counts = torch.bincount(routing.experts.flatten(), minlength=len(self._chains)).tolist()
        start = 0
        for chain, count in zip(self._chains, counts, strict=True):
            if count:
                here = slice(start, start + count)
                chain.run([rows[here], wide[here], out[here]])
                start += count
        by_token = torch.empty_like(out).index_copy_(0, order, out).view(*routing.weights.shape, -1)
        # no matrix product: torch's sums differ in their last bits with the number of tokens
        y = (by_token * routing.weights[..., None]).sum(1)
        return y, torch.zeros((), dtype=torch.int64, device=x.device)


class RowGatedFeedForward(_Chained):
    """`GatedFeedForward` with SiLU and layers of one form, in one call; the children keep their names."""

    def __init__(self, gate: RowLinear, up: RowLinear, down: RowLinear) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        if self._chains is None:
            wide = Multiply(self.gate.row_weight, 0, 1, activation="silu", up=self.up.row_weight)
            self._chains = [RowChain([wide, Multiply(self.down.row_weight, 1, 2)])]
        rows = x.reshape(-1, x.shape[-1]).to(torch.float32).contiguous()
        out = torch.empty_like(rows)
        self._chains[0].run([rows, rows.new_empty(rows.shape[0], self.gate.out_features), out])
        return out.view(x.shape).to(x.dtype)


def row_gated(layer: nn.Module) -> nn.Module | None:
    """Return a gated feed-forward layer in one call, sharing the children of `layer`; None where it is none."""
    if type(layer) is not GatedFeedForward or layer.activation is not F.silu:
        return None
    gate, up, down = layer.gate, layer.up, layer.down
    if not (isinstance(gate, RowLinear) and isinstance(up, RowLinear) and isinstance(down, RowLinear)):
        return None
    return RowGatedFeedForward(gate, up, down).eval() if gate.form == up.form else None


class RowRouter(_Chained):
    """`Router` for inference, its scores in fp32 from the kernel."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router
        self.scores = RowStack.rounded(router.weight.detach()[None], "fp32")

    def forward(self, x: Tensor) -> Routing:
        """Choose experts for each token of `x` (..., d_model)."""
        if self._chains is None:
            self._chains = [RowChain([Multiply(self.scores.weights()[0], 0, 1)])]
        rows = x.reshape(-1, x.shape[-1]).to(torch.float32).contiguous()
        logits = rows.new_empty(rows.shape[0], self.router.config.num_experts)
        self._chains[0].run([rows, logits])
        return self.router.choose(logits.view(*x.shape[:-1], -1))


class RowLatentUp(_Chained):
    """Latent attention's `kv_up` for inference: queries to latents and latents to values, head by head, in one call.

    `weight` (num_heads * (plain_dim + value_dim), kv_rank) as `kv_up` has it.
    """

    def __init__(self, weight: Tensor, num_heads: int, plain_dim: int, form: RowForm) -> None:
        super().__init__()
        heads = torch.unflatten(weight.detach(), 0, (num_heads, -1))
        self.num_heads = num_heads
        self.keys = RowStack.rounded(heads[:, :plain_dim].mT, form)
        self.values = RowStack.rounded(heads[:, plain_dim:], form)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., num_heads * (plain_dim + value_dim)): the keys and values of latents (..., kv_rank)."""
        weight = torch.cat([self.keys.dequantized_weight().mT, self.values.dequantized_weight()], dim=1)
        return F.linear(x.to(torch.float32), weight.flatten(0, 1)).to(x.dtype)

    def to_latents(self, query: Tensor) -> Tensor:
        """Return (batch, num_heads, time, kv_rank) of queries (batch, num_heads, time, plain_dim)."""
        return self._multiply(0, query)

    def to_values(self, latents: Tensor) -> Tensor:
        """Return (batch, num_heads, time, value_dim) of weighted latents (batch, num_heads, time, kv_rank)."""
        return self._multiply(1, latents)

    def _multiply(self, which: int, x: Tensor) -> Tensor:
        if self._chains is None:
            self._chains = [
                RowChain([Multiply(weight, head, self.num_heads + head) for head, weight in enumerate(stack.weights())])
                for stack in (self.keys, self.values)
            ]
        rows = x.to(torch.float32).transpose(0, 1).flatten(1, 2)  # (num_heads, batch * time, width)
        y = rows.new_empty(*rows.shape[:2], (self.keys, self.values)[which].out_features)
        self._chains[which].run([*rows, *y])
        return torch.unflatten(y, 1, (x.shape[0], -1)).transpose(0, 1).to(x.dtype)
