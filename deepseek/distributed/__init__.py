"""`torch.distributed` under our name: `ds.distributed.init_process_group(backend="gloo")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.distributed import *  # noqa: F403

__getattr__, __dir__ = lazy_names(__name__, {}, fallback="torch.distributed")
