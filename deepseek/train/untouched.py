"""Run something on a model and leave no trace: random states, buffers, gradients, weights and optimizer states go back.

Not here: what a module keeps outside of its buffers, such as caches in attributes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.checkpoint.training_state import random_state, restore_random_state


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back random states, buffers and gradients when the block ends; inside, there are no gradients at first."""
    randomness = random_state()
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        restore_random_state(randomness)


@contextlib.contextmanager
def taken_back(optimizer: Optimizer) -> Iterator[None]:
    """Put back the optimizer's weights and states when the block ends."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [(p, p.detach().clone()) for p in parameters]
    groups = [dict(group) for group in optimizer.param_groups]
    states = {
        p: {
            key: (value, value.clone() if isinstance(value, Tensor) else copy.deepcopy(value))
            for key, value in state.items()
        }
        for p, state in optimizer.state.items()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in weights:
                parameter.copy_(before)
            for p in set(optimizer.state) - set(states):
                del optimizer.state[p]
            for p, state in states.items():
                optimizer.state[p].clear()
                for key, (value, before) in state.items():
                    optimizer.state[p][key] = value.copy_(before) if isinstance(value, Tensor) else before
        for group, before_group in zip(optimizer.param_groups, groups, strict=True):
            group.update(before_group)
