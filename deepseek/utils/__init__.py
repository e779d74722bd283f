"""Tools beside the road: `check_env` looks at the machine; every other name is `torch.utils`' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.utils import *  # noqa: F403
    from torch.utils import data as data

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "check_env": "deepseek.utils.check_env",
    },
    fallback="torch.utils",
)
