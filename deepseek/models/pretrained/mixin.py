"""`from_pretrained` and `save_pretrained` for templates that have a public counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from deepseek.models.pretrained import front


class PretrainedMixin:
    """Adds reading and writing of weights in the Hugging Face layout to a template."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **changes: Any,
    ) -> Self:
        """Return a model of this template from a folder or hub name; see `front.from_pretrained`.

        Raises ModelError also for a checkpoint of another template.
        """
        model = front.load_pretrained(source, cls, dtype, device, changes)
        if not isinstance(model, cls):
            raise TypeError(f"{type(model).__name__} is not a {cls.__name__}")
        return model

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> Path:
        """Write config.json and safetensors; see `front.save_pretrained`."""
        if not isinstance(self, nn.Module):
            raise TypeError("PretrainedMixin belongs to an nn.Module")
        return front.save_pretrained(self, folder, max_shard_size=max_shard_size)
