"""Weights in the Hugging Face layout, read into our templates and written back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.models.pretrained.front import from_pretrained as from_pretrained
    from deepseek.models.pretrained.front import save_pretrained as save_pretrained

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "from_pretrained": "deepseek.models.pretrained.front:from_pretrained",
        "save_pretrained": "deepseek.models.pretrained.front:save_pretrained",
    },
)
