"""The proof that units were removed soundly: nothing that is left may answer differently.

Before units are removed, all that reads them is set to zero; then nothing depends on them, and the smaller model must
answer the same. Where it does not, the first module whose output changed is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.compress.pruning.tracing import Inputs, run
from deepseek.errors import ModelError

TOLERANCE = 1e-3
"""Largest difference in float32, as a share of the largest output; 30 times that in 16-bit formats."""


@dataclass(frozen=True)
class Answer:
    """What a model put out, and of each of its modules in the order of their calls the shape and the mean size."""

    outputs: list[Tensor]
    modules: list[tuple[str, tuple[int, ...], float]]


def answer(model: nn.Module, inputs: Inputs) -> Answer:
    """Run the model without gradients. Raises ModelError naming the module that fails."""
    modules: list[tuple[str, tuple[int, ...], float]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                modules.append((name, tuple(output.shape), float(output.abs().float().mean())))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            return Answer([output.clone() for output in run(model, inputs)], modules)
    finally:
        for handle in handles:
            handle.remove()


def check_same(silenced: Answer, pruned: Answer, names: Sequence[str]) -> None:
    """Compare the answers of a model before and after the removal of units that nothing read any more.

    Raises ModelError naming the first module that answers differently, and the groups of units.
    """
    for wanted, found in zip(silenced.outputs, pruned.outputs, strict=True):
        bound = TOLERANCE * (1 if wanted.dtype in (torch.float32, torch.float64) else 30)
        far = wanted.shape != found.shape or not torch.allclose(
            found, wanted, rtol=0, atol=bound * max(float(wanted.abs().max()) if wanted.numel() else 0.0, 1e-6)
        )
        if far:
            raise ModelError(
                f"the pruned model answers differently, first at module '{_first_changed(silenced, pruned)}'",
                found=f"units removed from {list(names[:8])}{' ...' if len(names) > 8 else ''}",
                wanted="units whose every reader is known",
                fix="put the module's neighbours into `skip`",
            )


def _first_changed(silenced: Answer, pruned: Answer) -> str:
    for (name, shape, size), (other, other_shape, other_size) in zip(silenced.modules, pruned.modules, strict=False):
        if name == other and shape == other_shape and abs(size - other_size) > TOLERANCE * max(size, 1e-6):
            return name
    return "the output"
