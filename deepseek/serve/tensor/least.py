"""The least sizes that a model takes, found by trial: a speech model wants some frames before it has an answer at all.

What a template itself checks is not in an exported graph: a runtime would answer too short inputs in its own words.
Not here: the largest sizes, which configs tell (see `describe`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepseek.errors import DeepSeekError
from deepseek.export.signature import Axes, resized


def least_sizes(model: nn.Module, inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, int]:
    """Return the least size of each free dimension but the batch's, where it is above 1 (a few runs of the model).

    `inputs` is an example that the model takes, on any device.
    """
    sizes = {
        axis: size
        for name, value in inputs.items()
        for axis, size in zip(axes[name], value.shape, strict=True)
        if axis is not None
    }
    found = {axis: _least(model, inputs, axes, sizes, axis) for axis in sizes if axis != "batch"}
    return {axis: least for axis, least in found.items() if least > 1}


def _least(model: nn.Module, inputs: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int], axis: str) -> int:
    too_small, takes = 0, 1
    while takes < sizes[axis] and not _runs(model, inputs, axes, {**sizes, axis: takes}):
        too_small, takes = takes, 2 * takes
    takes = min(takes, sizes[axis])
    while takes - too_small > 1:
        middle = (takes + too_small) // 2
        if _runs(model, inputs, axes, {**sizes, axis: middle}):
            takes = middle
        else:
            too_small = middle
    return takes


def _runs(model: nn.Module, inputs: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int]) -> bool:
    devices = {name: value.device for name, value in inputs.items()}
    try:
        with torch.no_grad():
            model(**{name: value.to(devices[name]) for name, value in resized(inputs, axes, sizes).items()})
    except (DeepSeekError, RuntimeError, ValueError, IndexError):
        return False
    return True
