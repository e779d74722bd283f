"""The first layer of a PyTorch form (bf16, int8) whose output is no longer the original's, for one input.

Not here: nodes of exported files (`first_difference.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.export.quality import deviation

Seen = Callable[[str, dict[str, Tensor]], None]


class Layer(NamedTuple):
    """A layer by its dotted name, its kind in the form, and the signal-to-noise ratio of its output in dB."""

    name: str
    kind: str
    snr_db: float


def first_differing_layer(
    original: nn.Module,
    run_original: Callable[[], Any],
    form: nn.Module,
    run_form: Callable[[], Any],
    least_snr_db: float,
) -> Layer | None:
    """Return the first layer, in the order they run, whose output in `form` has less than `least_snr_db`; else None.

    Both models have layers of the same names. A convolution whose norm was folded into it is compared after the norm.
    The original's outputs of this one input are held in memory.
    """
    wanted: dict[str, dict[str, Tensor]] = {}
    with _watched(original, lambda name, found: wanted.update({name: found})):
        run_original()
    ratios: list[Layer] = []

    def compare(name: str, found: dict[str, Tensor]) -> None:
        exact = wanted.get(name)
        if exact:
            kind = type(form.get_submodule(name)).__name__
            ratios.append(Layer(name, kind, deviation(exact, found).snr_db))

    with _watched(form, compare):
        run_form()
    for index, layer in enumerate(ratios):
        folded = index + 1 < len(ratios) and _was_folded(original, form, ratios[index + 1].name)
        if layer.snr_db < least_snr_db and not folded:
            return layer
    return None


def _was_folded(original: nn.Module, form: nn.Module, name: str) -> bool:
    return isinstance(form.get_submodule(name), nn.Identity) and not isinstance(
        original.get_submodule(name), nn.Identity
    )


@contextmanager
def _watched(model: nn.Module, seen: Seen) -> Iterator[None]:
    """Call `seen` with each layer's first output (floating-point tensors, float32, by number) while inside."""
    met: set[str] = set()

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name not in met:
                met.add(name)
                seen(name, _floats(output))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if name and not any(module.children())]
    handles = [module.register_forward_hook(hook_for(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _floats(output: Any) -> dict[str, Tensor]:
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return {str(index): tensor.detach().float().clone() for index, tensor in enumerate(tensors)}
