"""Number formats: which one the matrix products use, and the loss scale that float16 needs.

The master weights are float32 in every format: the model's parameters themselves stay float32, autocast (or the float8
layers) rounds copies of what enters a matrix product, and the optimizer updates the float32 ones. Only the setting
`weights_dtype: bf16` (`build.py`) gives them up, for memory; its updates are rounded stochastically instead.
Sources: Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740; float8, Micikevicius et al. 2022, "FP8
Formats for Deep Learning", arXiv:2209.05433; float32 by parts, PyTorch's notes on oneDNN and on CUDA's TF32.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.hardware import bf16_is_fast, cpu_features
from deepseek.nn.float8_swap import LeftLayer, swap_from_float8, swap_to_float8

logger = logging.getLogger("deepseek.optim")

PrecisionName = Literal["auto", "bf16", "fp16", "fp32", "fp32_fast", "fp8"]

DYNAMIC_SCALE = 65536.0


class Precision:
    """A number format on a device: `dtype` is what autocast uses, bfloat16, float16 or None for float32.

    `auto` takes bfloat16 where it is fast. float16 on a device without fast float16 (any CPU) becomes bfloat16 or
    float32, and says so. `fp32_fast` keeps float32 tensors and lets a matrix product round inside: TF32 on CUDA,
    bfloat16 on CPUs with AMX. On other CPUs with AVX-512 it takes oneDNN's float32 products, which round as float32
    does: twice as fast as MKL's on an AMD Zen 5, forward and backward. `fp8` needs an NVIDIA GPU of compute capability
    9.0 (Hopper): large linear layers in float8, the rest bfloat16. Raises ConfigError where the device lacks it.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        if name == "fp16" and device.type == "cpu":
            name = "bf16" if bf16_is_fast(device) else "fp32"
            logger.warning("float16 is slow on this CPU; using %s instead", name)
        if name == "auto":
            name = "bf16" if bf16_is_fast(device) else "fp32"
        if name == "fp8":
            _require_float8(device)
        if name == "fp32_fast" and not _has_fast_fp32(device):
            logger.warning("fp32_fast has no effect here: it needs CUDA, or a CPU with AVX-512")
        self.name = name
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}.get(name)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the model's forward pass runs."""
        if self.dtype is not None:
            return torch.autocast(self.device.type, self.dtype)
        return self.matmul()

    def matmul(self) -> contextlib.AbstractContextManager[object]:
        """Return the context for forward and backward pass together; it matters for `fp32_fast` alone."""
        return _fast_fp32(self.device) if self.name == "fp32_fast" else contextlib.nullcontext()

    def prepare(self, model: nn.Module) -> list[LeftLayer]:
        """Fit `model` to this format, in place; return what could not be fitted. Call it before making an optimizer.

        Only `fp8` changes anything: linear layers become float8 ones that hold the same parameters.
        """
        return swap_to_float8(model) if self.name == "fp8" else []

    def restore(self, model: nn.Module) -> None:
        """Undo `prepare`, in place: what a trained model is saved as. The parameters stay the same objects."""
        swap_from_float8(model)

    def check_weights(self, weights_dtype: str) -> None:
        """Raise ConfigError where weights of `weights_dtype` ("fp32", "bf16") can't be trained in this format."""
        if weights_dtype == "bf16" and self.dtype is not torch.bfloat16:
            raise ConfigError(
                "bfloat16 weights need bfloat16 matrix products",
                found=f"weights_dtype: bf16 with precision: {self.name}",
                fix="precision: bf16, or weights_dtype: fp32",
            )

    def scaler(self, loss_scale: float | None = None, *, min_scale: float = 1.0) -> torch.amp.GradScaler | None:
        """Return the loss scaler: `loss_scale` where given, dynamic for float16, else None.

        The dynamic one begins at 65536, doubles after 2,000 good steps in a row and halves at a bad one. A given scale
        never grows; a step that overflows is skipped and halves it. Below `min_scale` either is exhausted.
        """
        if loss_scale is not None:
            return LossScaler(self.device.type, loss_scale, grows=False, min_scale=min(min_scale, loss_scale))
        if self.dtype is not torch.float16:
            return None
        return LossScaler(self.device.type, DYNAMIC_SCALE, min_scale=min_scale)


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler with a floor: a scale below `min_scale` says that halving does not help.

    Any GradScaler may stand in its place; `is_exhausted` answers for both.
    """

    def __init__(self, device: str, init_scale: float, *, grows: bool = True, min_scale: float = 1.0) -> None:
        if not (0 < min_scale <= init_scale):
            raise ConfigError(
                "this loss scale can't be used",
                found=f"{init_scale} with a floor of {min_scale}",
                wanted="0 < floor <= scale",
            )
        super().__init__(device, init_scale=init_scale, growth_interval=2000 if grows else 2**31 - 1)
        self.min_scale = min_scale


def is_exhausted(scaler: torch.amp.GradScaler) -> bool:
    """Return whether the scale has fallen below the scaler's floor (1 for torch's own). Waits for the device."""
    return float(scaler.get_scale()) < float(getattr(scaler, "min_scale", 1.0))


@contextlib.contextmanager
def _fast_fp32(device: torch.device) -> Iterator[None]:
    """Let float32 matrix products round inside, for this context; what was set before comes back."""
    if device.type == "cuda":
        switch, value = torch.backends.cuda.matmul, "tf32"
    else:
        switch, value = torch.backends.mkldnn.matmul, "bf16"  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = value
    try:
        yield
    finally:
        switch.fp32_precision = before


def _has_fast_fp32(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and "avx512f" in cpu_features())


def _require_float8(device: torch.device) -> None:
    found = f"a device of type {device.type}"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 9 and torch.version.hip is None:
            return
        found = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    raise ConfigError(
        "this device can't train in float8",
        found=found,
        wanted="an NVIDIA GPU of compute capability 9.0 or newer (Hopper)",
        fix="precision: bf16, or auto",
    )
