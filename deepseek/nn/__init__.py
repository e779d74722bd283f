"""Layers and losses: ours by name, and every name of `torch.nn` under its own spelling and identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.nn import *  # noqa: F403
    from torch.nn import functional as functional
    from torch.nn import init as init
    from torch.nn import utils as utils

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Int8Linear": "deepseek.nn.int8_linear:Int8Linear",
        "relative_position_encoding": "deepseek.nn.positions:relative_position_encoding",
    },
    fallback="torch.nn",
)
