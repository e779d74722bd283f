"""Everything a run needs to go on, as one tree: weights, optimizer, scaler, random states, position."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from deepseek.errors import CheckpointError


def seed_random(seed: int) -> None:
    """Seed the random numbers of Python, numpy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the random states of Python, numpy and torch (CPU and GPUs)."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.array(keys)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the random states that `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the optimizer's state by parameter name, so that it does not hang on an order."""
    names = _parameter_names(optimizer, model)
    state = optimizer.state_dict()
    return {
        "state": {names[index]: values for index, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[index] for index in group["params"]]} for group in state["param_groups"]
        ],
    }


def restore_optimizer(optimizer: Optimizer, model: nn.Module, state: dict[str, Any]) -> None:
    """Load what `optimizer_state` returned. Raises CheckpointError when the parameters differ."""
    names = _parameter_names(optimizer, model)
    stored = [name for group in state["param_groups"] for name in group["params"]]
    if sorted(stored) != sorted(names):
        different = sorted(set(stored) ^ set(names))
        raise CheckpointError(
            "the optimizer holds other parameters than the checkpoint", found=", ".join(different[:6])
        )
    index = {name: position for position, name in enumerate(names)}
    optimizer.load_state_dict(
        {
            "state": {index[name]: values for name, values in state["state"].items()},
            "param_groups": [
                {**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]
            ],
        }
    )


def restore_model(model: nn.Module, state: dict[str, Any]) -> None:
    """Load weights, all or nothing. Raises CheckpointError listing what differs."""
    current = model.state_dict()
    missing, unexpected = sorted(set(current) - set(state)), sorted(set(state) - set(current))
    shapes = [
        f"{name}: {tuple(state[name].shape)} for {tuple(current[name].shape)}"
        for name in sorted(set(current) & set(state))
        if state[name].shape != current[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            "the checkpoint is of another model",
            found=f"missing {missing[:5]}, unexpected {unexpected[:5]}, other shapes {shapes[:5]}",
            fix="resume with the recipe the run began with, or choose another output folder",
        )
    model.load_state_dict(state)


def _parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id.get(id(parameter), f"extra_{i}") for i, parameter in enumerate(_parameters(optimizer))]


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
