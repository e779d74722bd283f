"""Where a layer's channels go, found by touching them: the rule for graphs that torch-pruning can't follow.

All layers that mix channels are held at random outputs; then one channel of one layer is changed, and every input that
differs belongs to it. This sees through views, transposes and concatenations along time, where a trace of autograd
nodes guesses. Not here: layers whose channels are added to others' (`channels` puts those together or leaves them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.compress.pruning.tracing import Inputs, run


class Probe:
    """A model whose layers that mix channels (`holding`) give random outputs; `watched` are all layers with weights."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, holding: Sequence[nn.Module], watched: Sequence[nn.Module]
    ) -> None:
        self._model, self._inputs, self._holding, self._watched = model, inputs, holding, watched
        self._held: dict[nn.Module, Tensor] = {}
        self._observed()
        generator = torch.Generator().manual_seed(0)
        for layer, output in self._held.items():
            self._held[layer] = torch.randn(output.shape, generator=generator).to(output)
        self._plain, self._outputs = self._observed()

    def readers(self, root: nn.Module, count: int) -> dict[nn.Module, tuple[Tensor, Tensor]] | None:
        """Return for each layer that receives the `count` channels of `root` its (units, indices).

        None where that is not plain: where the channels reach the output, are mixed, or come in no regular order.
        """
        touches: list[tuple[int, dict[nn.Module, Tensor]]] = []
        for unit in dict.fromkeys((0, count - 1)):
            inputs, outputs = self._observed((root, _touched(self._held[root], unit, root)))
            if any(not torch.equal(before, after) for before, after in zip(self._outputs, outputs, strict=True)):
                return None
            touches.append((unit, {m: _differs(m, x, inputs[m]) for m, x in self._plain.items() if m is not root}))
        found = {}
        for module in {layer for _, changed in touches for layer, index in changed.items() if index.numel()}:
            size = self._plain[module].shape[_channel_dim(module)]
            orders = [_order(size, count, in_a_row) for in_a_row in (True, False)] if size % count == 0 else []
            fitting = [
                (units, index)
                for units, index in orders
                if all(torch.equal(index[units == unit], changed[module]) for unit, changed in touches)
            ]
            if not fitting:
                return None
            found[module] = fitting[0]
        return found

    @torch.no_grad()
    def _observed(self, change: tuple[nn.Module, Tensor] | None = None) -> tuple[dict[nn.Module, Tensor], list[Tensor]]:
        """Run the model; return what the watched layers got and what came out. The first run notes what to hold."""
        seen: dict[nn.Module, Tensor] = {}
        noting = not self._held

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen[module] = args[0].clone()

        def leave(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            if noting:
                self._held[module] = output
                return output
            return (change[1] if change is not None and module is change[0] else self._held[module]).clone()

        handles = [layer.register_forward_pre_hook(enter) for layer in self._watched]
        handles += [layer.register_forward_hook(leave) for layer in self._holding]
        try:
            return seen, [output.clone() for output in run(self._model, self._inputs)]
        finally:
            for handle in handles:
                handle.remove()


def _order(size: int, count: int, in_a_row: bool) -> tuple[Tensor, Tensor]:
    """Return units and indices of `size` inputs: each unit's in a row, or every unit's first ones first."""
    units = torch.arange(count)
    return units.repeat_interleave(size // count) if in_a_row else units.repeat(size // count), torch.arange(size)


def _touched(output: Tensor, unit: int, root: nn.Module) -> Tensor:
    """Return a copy of a layer's output with other values in one channel."""
    dim = output.ndim - 1 if isinstance(root, nn.Linear) else 1
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(1 + unit)).to(output)
    changed = output.clone()
    changed.select(dim, unit).copy_(noise.select(dim, unit))
    return changed


def _channel_dim(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm) else 1


def _differs(module: nn.Module, before: Tensor, after: Tensor) -> Tensor:
    """Return the numbers of the channels of a layer's input that differ, rising."""
    changed = (before != after).movedim(_channel_dim(module), 0).flatten(1).any(1)
    return changed.nonzero()[:, 0].cpu()
