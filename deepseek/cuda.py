"""`torch.cuda` under our name: `ds.cuda.amp.autocast` and `ds.cuda.amp.GradScaler` are torch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.cuda import *  # noqa: F403
    from torch.cuda import amp as amp

__path__: list[str] = []  # a package, so that `from deepseek.cuda.amp import autocast` is an import path

__getattr__, __dir__ = lazy_names(__name__, {}, fallback="torch.cuda")
