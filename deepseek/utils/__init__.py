"""Tools beside the road: `check_env` looks at the machine, `data` has our data sets; the rest is `torch.utils`' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from torch.utils import *  # noqa: F403

    from deepseek.utils import data as data  # type: ignore[no-redef]  # torch's has the same name

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "check_env": "deepseek.utils.check_env",
        "data": "deepseek.utils.data",
    },
    fallback="torch.utils",
)
