"""Clip and update in one: the factor that clips the gradients is handed to the optimizer, not multiplied into them.

A pass over all gradients is saved: on a CPU where nothing is clipped, on a GPU always. There torch's fused AdamW also
skips a step whose gradients are not finite by itself, so that nobody has to wait for the norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from deepseek.optim.clipping import EPSILON, Clipper, NormClip, TotalNormClip, total_norm
from deepseek.optim.lean_adamw import LeanAdamW
from deepseek.optim.muon import MuonAdamW
from deepseek.optim.offload import OffloadedAdamW


class ClippedStep:
    """Clips with `clipper` and steps `optimizer`; a step whose gradients or loss are not finite changes no weight.

    The update is that of clipping first, but for the last bit of the gradients. Works with any optimizer and clipper;
    those that can't be joined run one after the other.
    """

    def __init__(self, optimizer: Optimizer, clipper: Clipper) -> None:
        self.optimizer = optimizer
        self.clipper = clipper
        self._takes_scale = isinstance(optimizer, LeanAdamW | MuonAdamW | OffloadedAdamW) or _is_fused(optimizer)

    @torch.no_grad()
    def __call__(self, parameters: list[Tensor], loss: Tensor | None = None) -> Tensor:
        """Do one step; return the norm of the gradients before, a float32 scalar on their device.

        `loss`: a scalar that has to be finite too. On a GPU with torch's fused AdamW nothing here waits for it.
        """
        if self._takes_scale and type(self.clipper) is NormClip and not _on_gpu(parameters):
            return self._in_numbers(self.clipper.max_norm, total_norm(parameters), loss)
        joined = self._takes_scale and isinstance(self.clipper, TotalNormClip)
        if joined and isinstance(self.clipper, TotalNormClip):
            norm, factor = self.clipper.factor(parameters)
        else:
            norm, factor = self.clipper(parameters), None
        good = norm.isfinite() if loss is None else norm.isfinite() & loss.isfinite().to(norm.device)
        if norm.is_cuda and _is_fused(self.optimizer):
            self._step(factor, (~good).float())
        elif bool(good):
            self._step(factor if factor is not None and float(factor) != 1.0 else None, None)
        return norm

    def _in_numbers(self, max_norm: float, norm: Tensor, loss: Tensor | None) -> Tensor:
        """Do the same with Python's numbers: on a CPU a number costs less than a tensor of one."""
        value = float(norm)
        if math.isfinite(value) and (loss is None or math.isfinite(float(loss))):
            factor = max_norm / (value + EPSILON)
            self._step(torch.tensor(factor) if factor < 1 else None, None)
        return norm

    def _step(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        if factor is not None:
            self.optimizer.grad_scale = factor.reciprocal()  # type: ignore[attr-defined]
        if found_inf is not None:
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.__dict__.pop("grad_scale", None)
            self.optimizer.__dict__.pop("found_inf", None)


def _on_gpu(parameters: list[Tensor]) -> bool:
    return bool(parameters) and parameters[0].is_cuda


def _is_fused(optimizer: Optimizer) -> bool:
    """Tell an Adam of torch whose groups are all fused: it takes `grad_scale` and `found_inf`."""
    return isinstance(optimizer, torch.optim.Adam) and all(group.get("fused") for group in optimizer.param_groups)
