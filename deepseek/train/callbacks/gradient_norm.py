"""The norms of the gradients, layer by layer: where they vanish or blow up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState


class GradientNorm(Callback):
    """Logs `grad_norm/<layer>` every `every` steps: the 2-norm of the gradients before clipping.

    A layer is what the first `depth` parts of a parameter's name say ("blocks.3" at depth 2); None logs each parameter.
    In the other steps nothing is computed. Raises ConfigError for `every` or `depth` below 1.
    """

    def __init__(self, every: int = 100, depth: int | None = 2) -> None:
        if every < 1 or (depth is not None and depth < 1):
            raise ConfigError(
                "GradientNorm's every or depth is wrong", found=f"every={every}, depth={depth}", wanted="at least 1"
            )
        self.every = every
        self.depth = depth
        self._norms: dict[str, float] = {}

    @torch.no_grad()
    def on_gradients(self, state: RunState) -> None:
        if (state.step + 1) % self.every:
            return
        gradients = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
        squares: dict[str, float] = {}
        for name, norm in zip(gradients, _norms(list(gradients.values())), strict=True):
            layer = ".".join(name.split(".")[: self.depth])
            squares[layer] = squares.get(layer, 0.0) + norm * norm
        self._norms = {f"grad_norm/{layer}": math.sqrt(square) for layer, square in squares.items()}

    def on_step_end(self, state: RunState) -> None:
        if self._norms:
            state.log(self._norms)
            self._norms = {}


def _norms(tensors: list[Tensor]) -> list[float]:
    """Return the 2-norms; the numbers are read from the device at once."""
    if not tensors:
        return []
    norms: list[Tensor] = list(torch._foreach_norm(tensors))
    values: list[float] = torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).tolist()
    return values
