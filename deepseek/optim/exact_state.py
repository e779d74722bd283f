"""Optimizer states of any number format, loaded bit by bit.

torch's `Optimizer.load_state_dict` casts what it loads to the parameter's format, which would ruin 8-bit codes and
float32 states of bfloat16 weights. Source: `torch/optim/optimizer.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ExactStateOptimizer(Optimizer):
    """An optimizer that loads its states as they were saved; derive from it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Raises ValueError when the parameter groups differ."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, held, strict=True):
            if index in state_dict["state"]:
                self.state[parameter] = {
                    name: _copy(value, self.state_device(parameter))
                    for name, value in state_dict["state"][index].items()
                }

    def state_device(self, parameter: Tensor) -> torch.device:
        """Return where the states of `parameter` live."""
        return parameter.device


def _copy(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, copy=True)
