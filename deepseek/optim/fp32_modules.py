"""Modules kept in float32 inside a model that runs under autocast: put on from outside, and taken off again.

The module's class is exchanged for one derived from it whose `forward` switches autocast off and takes float32 inputs.
Parameters, buffers, names and hooks stay; `torch.compile` traces through it, and a copy of the model keeps it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deepseek.errors import ModelError, did_you_mean


class KeptInFp32:
    """What `keep_fp32` put on; `remove` takes it off."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules

    @property
    def names(self) -> list[str]:
        """The modules kept in float32."""
        return list(self.modules)

    def remove(self) -> None:
        """Let the modules run like the rest of the model again."""
        for module in self.modules.values():
            original = _original(type(module))
            if original is not None:
                module.__class__ = original
        self.modules = {}


def keep_fp32(model: nn.Module, names: Iterable[str]) -> KeptInFp32:
    """Let the modules of `names` (and all inside them) compute in float32 under autocast; return how to undo it.

    Floating-point inputs are turned into float32; outputs are what the module makes of them. A module already kept is
    left alone. Raises ModelError for an unknown name.
    """
    known = dict(model.named_modules())
    chosen: dict[str, nn.Module] = {}
    for name in names:
        if name not in known:
            raise ModelError(f"the model has no module '{name}'", fix=did_you_mean(name, [n for n in known if n]))
        if _original(type(known[name])) is None:
            chosen[name] = known[name]
    for module in chosen.values():
        original: Any = type(module)
        module.__class__ = _derived(original)
    return KeptInFp32(chosen)


@functools.cache
def _derived(original: Any) -> Any:  # a class of modules, to one derived from it
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(_to_float32, (args, kwargs))
        with torch.autocast(_device_type(self, args), enabled=False):
            return original.forward(self, *args, **kwargs)

    return type(original.__name__, (original,), {"forward": forward, "_kept_in_fp32": original})


def _original(kind: type[nn.Module]) -> type[nn.Module] | None:
    found: type[nn.Module] | None = kind.__dict__.get("_kept_in_fp32")
    return found


def _to_float32(value: Any) -> Any:
    lowered = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if lowered else value


def _device_type(module: nn.Module, args: tuple[Any, ...]) -> str:
    for value in args:
        if isinstance(value, Tensor):
            return value.device.type
    parameter = next(module.parameters(), None)
    return parameter.device.type if parameter is not None else "cpu"
