"""Mixed precision: which number format the matrix products use, and the loss scale that float16 needs.

Weights stay float32 (the master copy); autocast rounds what enters a matrix product.
Source: Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Literal

import torch

from deepseek.hardware import bf16_is_fast

logger = logging.getLogger("deepseek.optim")

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]


class Precision:
    """A number format on a device: `dtype` is bfloat16, float16 or None for plain float32.

    `auto` takes bfloat16 where it is fast. float16 on a device without fast float16 (any CPU) becomes bfloat16 or
    float32, and says so.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        if name == "fp16" and device.type == "cpu":
            name = "bf16" if bf16_is_fast(device) else "fp32"
            logger.warning("float16 is slow on this CPU; using %s instead", name)
        if name == "auto":
            name = "bf16" if bf16_is_fast(device) else "fp32"
        self.name = name
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[name]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the model's forward pass runs."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self, loss_scale: float | None = None) -> torch.amp.GradScaler | None:
        """Return the loss scaler: `loss_scale` where given, dynamic (65536, factor 2) for float16, else None.

        A given scale never grows; a step that overflows is skipped and halves it.
        """
        if loss_scale is not None:
            return torch.amp.GradScaler(self.device.type, init_scale=loss_scale, growth_interval=2**31 - 1)
        if self.dtype is not torch.float16:
            return None
        return torch.amp.GradScaler(self.device.type, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5)
