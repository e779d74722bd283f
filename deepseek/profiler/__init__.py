"""`torch.profiler` under our name: `with ds.profiler.profile() as prof: ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.profiler import *  # noqa: F403

__getattr__, __dir__ = lazy_names(__name__, {}, fallback="torch.profiler")
