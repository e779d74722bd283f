"""Linear layers replaced from outside by float8 ones, where that can be faster; the parameters stay the same objects.

Not here: the layer itself (`float8_linear.py`), and whether the device has float8 (`deepseek.optim.precision`).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from deepseek.nn.float8_linear import SIZES_DIVIDE, Float8Linear
from deepseek.nn.int8_swap import set_layer

LARGE_ENOUGH = 1 << 20
"""Numbers in a weight from which on float8 pays: the products have to outweigh the casts of both sides."""


class LeftLayer(NamedTuple):
    """A linear layer that stays as it is, and why."""

    name: str
    reason: str


def swap_to_float8(model: nn.Module, *, smallest: int = LARGE_ENOUGH) -> list[LeftLayer]:
    """Replace the large linear layers of `model` by float8 ones, in place; return those left, with the reason.

    Left are small ones, those with a size no multiple of 16, classes derived from nn.Linear, and an output layer that
    shares its weight with an embedding or is called `lm_head`: the loss is sensitive to it. State dicts stay the same.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    left = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or isinstance(module, Float8Linear) or not name:
            continue
        reason = _reason(name, module, shared, smallest)
        if reason is None:
            set_layer(model, name, Float8Linear.from_linear(module))
        else:
            left.append(LeftLayer(name, reason))
    return left


def swap_from_float8(model: nn.Module) -> None:
    """Put plain linear layers back, in place, holding the same parameters: what a trained model is saved as."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Float8Linear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight, plain.bias = module.weight, module.bias
            set_layer(model, name, plain.train(module.training))


def _reason(name: str, linear: nn.Linear, shared: set[int], smallest: int) -> str | None:
    if type(linear) is not nn.Linear:
        return f"a {type(linear).__name__}"
    if id(linear.weight) in shared or name.rpartition(".")[2] == "lm_head":
        return "the output layer"
    if linear.in_features % SIZES_DIVIDE or linear.out_features % SIZES_DIVIDE:
        return f"{linear.out_features} x {linear.in_features}: not multiples of {SIZES_DIVIDE}"
    if linear.weight.numel() < smallest:
        return f"{linear.out_features} x {linear.in_features}: too small to gain"
    return None
