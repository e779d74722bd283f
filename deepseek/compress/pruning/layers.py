"""Whole residual blocks: the ones that change the stream least go.

A block of a list can go where its output is one tensor of the input's shape and the input reaches it past every
matrix product (autograd tells). Its influence is one minus the cosine between its input and its output.
Source: Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv:2403.03853.
"""

from __future__ import annotations

import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.compress.pruning.tracing import Inputs, behind, run

_MIXES = re.compile(r"mm|conv|matmul|dot|linear|expert", re.IGNORECASE)


def block_influence(model: nn.Module, inputs: Inputs) -> dict[str, dict[int, float]]:
    """Return for each list of modules the influence, 0 to 2, of those members that can be left out."""
    members = {
        module: (name, index)
        for name, blocks in model.named_modules()
        if isinstance(blocks, nn.ModuleList | nn.Sequential)
        for index, module in enumerate(blocks.children())
    }
    found: dict[str, dict[int, float]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before = args[0] if args else None
        if not isinstance(before, Tensor) or not isinstance(output, Tensor) or before.shape != output.shape:
            return
        around = behind(output.grad_fn, lambda node: bool(_MIXES.search(node.name())))
        if before.grad_fn is None or before.grad_fn not in around:
            return
        if any(weight.ndim > 1 for weight in module.parameters()):  # a norm alone is no block
            name, index = members[module]
            likeness = F.cosine_similarity(before.detach().flatten(1), output.detach().flatten(1)).mean()
            found.setdefault(name, {})[index] = 1 - float(likeness)

    handles = [module.register_forward_hook(note) for module in members]
    try:
        run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
