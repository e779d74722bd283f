"""What a run needs to go on, as trees of tensors and plain values: weights, optimizer, whatever has a `state_dict`.

Loading is all or nothing, and says what differs. Sharded values (DTensor) are laid out as the target is.
Not here: random numbers (`random_states.py`, whose names are found here too), how a tree gets to disk (`store.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.checkpoint.random_states import random_state, restore_random_state, seed_random
from deepseek.checkpoint.sharded import is_sharded, placed_like
from deepseek.errors import CheckpointError

__all__ = [
    "Stateful",
    "optimizer_state",
    "random_state",
    "restore_model",
    "restore_optimizer",
    "restore_random_state",
    "restore_states",
    "seed_random",
    "states_of",
]


class Stateful(Protocol):
    """What keeps numbers between steps: a gradient scaler, a clipper, an average of weights, a callback."""

    def state_dict(self) -> dict[str, Any]:
        """Return them: a tree of plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Set them."""
        ...


def states_of(parts: Mapping[str, Stateful | None]) -> dict[str, Any]:
    """Return the state of each part by name, None for a part that is not there."""
    return {name: None if part is None else part.state_dict() for name, part in parts.items()}


def restore_states(parts: Mapping[str, Stateful | None], states: Mapping[str, Any]) -> None:
    """Load what `states_of` returned. Raises CheckpointError before anything is loaded where other parts were saved."""
    wanted = {name for name, part in parts.items() if part is not None}
    stored = {name for name, state in states.items() if state is not None}
    if wanted != stored:
        raise CheckpointError(
            "the checkpoint is of a run with other parts",
            found=f"missing {sorted(wanted - stored)}, unexpected {sorted(stored - wanted)}",
            fix="resume with the settings the run began with",
        )
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(states[name])


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
    parameters = _parameters(optimizer)
    placed = {
        index[name]: {key: _owned(value, parameters[index[name]]) for key, value in values.items()}
        for name, values in state["state"].items()
    }
    groups = [{**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
    optimizer.load_state_dict({"state": placed, "param_groups": groups})


def _owned(value: Any, parameter: Tensor) -> Any:
    """Return a tensor laid out as the parameter is, in memory of its own and not over the file."""
    if not isinstance(value, Tensor):
        return value
    if is_sharded(parameter):
        return placed_like(parameter, value) if value.shape == parameter.shape else value.clone()
    return value.clone() if value.device == parameter.device or value.numel() == 1 else value


def restore_model(model: nn.Module, state: dict[str, Any]) -> None:
    """Load weights, all or nothing. Raises CheckpointError listing what differs: names, shapes, dtypes."""
    current = model.state_dict()
    missing, unexpected = sorted(set(current) - set(state)), sorted(set(state) - set(current))
    both = [name for name in sorted(set(current) & set(state)) if isinstance(current[name], Tensor)]
    shapes = [
        f"{name}: {tuple(state[name].shape)} for {tuple(current[name].shape)}"
        for name in both
        if state[name].shape != current[name].shape
    ]
    dtypes = [
        f"{name}: {state[name].dtype} for {current[name].dtype}"
        for name in both
        if state[name].dtype != current[name].dtype
    ]
    if missing or unexpected or shapes or dtypes:
        raise CheckpointError(
            "the checkpoint is of another model",
            found=_differences(
                {"missing": missing, "unexpected": unexpected, "other shapes": shapes, "other dtypes": dtypes}
            ),
            fix="resume with the recipe the run began with, or choose another output folder",
        )
    model.load_state_dict(
        {
            name: placed_like(current[name], value) if isinstance(value, Tensor) and name in both else value
            for name, value in state.items()
        }
    )


def _differences(kinds: dict[str, list[str]]) -> str:
    """Return up to five of each kind, and how many more there are."""
    parts = []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            parts.append(f"{kind} [{', '.join(names[:5])}]{more}")
    return ", ".join(parts)


def _parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id.get(id(parameter), f"extra_{i}") for i, parameter in enumerate(_parameters(optimizer))]


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
