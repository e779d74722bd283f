"""Runs of a model that say where it failed, and walks through what autograd recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.errors import DeepSeekError, ModelError

Inputs = Mapping[str, Any]
"""Example inputs by the names of the model's arguments."""


def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return the floating-point tensors that the model puts out.

    Raises ModelError naming the innermost module that failed, DeepSeekError as the model raises it.
    """
    open_modules: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: open_modules.append(name)

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name or type(model).__name__)))
        handles.append(module.register_forward_hook(lambda *_: open_modules.pop() and None))
    try:
        output = model(**inputs)
    except DeepSeekError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model can't be run at module '{open_modules[-1] if open_modules else type(model).__name__}'",
            found=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            wanted="a model that takes the example inputs",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def behind(start: Any, stop: Callable[[Any], bool] = lambda node: False) -> Iterator[Any]:
    """Yield the autograd nodes that `start` depends on, itself first; not what lies behind a node that stops."""
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if not stop(node):
            waiting.extend(before for before, _ in node.next_functions)


def leaves_behind(tensor: Tensor) -> list[Tensor]:
    """Return the parameters that a tensor was computed from."""
    return [node.variable for node in behind(tensor.grad_fn) if hasattr(node, "variable")]
