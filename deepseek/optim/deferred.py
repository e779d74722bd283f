"""Optimizers without parameters: `AdamW(lr=5e-4)` waits for the model it is given to.

`deepseek.optim.AdamW(model.parameters(), lr=...)` makes torch's own object; called without parameters it makes a
DeferredOptimizer, which a trainer binds to its model's parameters. torch would raise a TypeError there, so nothing
that runs on torch changes its meaning.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class DeferredOptimizer:
    """An optimizer's class and settings, waiting for parameters. Raises TypeError for a setting the class lacks."""

    def __init__(self, optimizer_class: type[Optimizer], settings: dict[str, Any]) -> None:
        inspect.signature(optimizer_class).bind(None, **settings)
        self.optimizer_class = optimizer_class
        self.settings = settings

    def bind(self, params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> Optimizer:
        """Return the optimizer over `params`. Raises TypeError or ValueError as torch does for wrong settings."""
        return self.optimizer_class(params, **self.settings)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.optimizer_class.__name__}({settings})"


class _Deferrable(type):
    """Makes `Class(lr=...)` a DeferredOptimizer, and `Class(params, lr=...)` torch's own object.

    A class derived from a stand-in is an optimizer class like any other.
    """

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        torch_class = _stands_for(cls)
        if torch_class is None:
            return super().__call__(*args, **settings)
        if args or "params" in settings:
            return torch_class(*args, **settings)
        return DeferredOptimizer(torch_class, settings)

    def __instancecheck__(cls, instance: object) -> bool:
        torch_class = _stands_for(cls)
        return super().__instancecheck__(instance) if torch_class is None else isinstance(instance, torch_class)

    def __subclasscheck__(cls, subclass: type) -> bool:
        torch_class = _stands_for(cls)
        return super().__subclasscheck__(subclass) if torch_class is None else issubclass(subclass, torch_class)


def _stands_for(cls: type) -> type[Optimizer] | None:
    return cls.__dict__.get("_torch_class")


def deferrable(torch_class: type[Optimizer]) -> type[Optimizer]:
    """Return a stand-in for a torch optimizer class that can also be called without parameters."""
    made = _Deferrable(
        torch_class.__name__, (torch_class,), {"__doc__": torch_class.__doc__, "_torch_class": torch_class}
    )
    return made  # type: ignore[return-value]
