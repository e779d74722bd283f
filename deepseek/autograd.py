"""`torch.autograd` under our name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.autograd import *  # noqa: F403

__path__: list[str] = []  # a package, so that `import deepseek.autograd.functional` is an import path

__getattr__, __dir__ = lazy_names(__name__, {}, fallback="torch.autograd")
