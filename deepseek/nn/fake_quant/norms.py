"""Batch norm whose statistics stand still after a number of batches, so that training ends on what is deployed.

Folding needs no more than that here. A convolution's weight has one step for each output channel, so rounding and the
norm's factor change places: rounding `w * factor` in steps of `step * |factor|` gives `factor` times `w` rounded in
steps of `step`. The norm may therefore stay a module of its own in training, and the folded weight jumps about with no
batch's statistics. What is left of Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2 ("correction and freezing") is
the freezing. Not here: folding itself (`convert.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FreezingBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over `(batch, channels, ...)` that from its `freeze_after`-th batch on normalizes by the running
    statistics in training too, and leaves them alone; scale and shift go on learning.

    It counts in `num_batches_tracked`, so a resumed run freezes at the same batch. Micro-batches count one each.
    """

    freeze_after: int
    plain: type[nn.modules.batchnorm._BatchNorm]

    @classmethod
    def of(cls, norm: nn.modules.batchnorm._BatchNorm, freeze_after: int) -> FreezingBatchNorm:
        """Return a norm with the parameters and statistics of `norm` (which tracks them), counting from now on."""
        made = cls(norm.num_features, norm.eps, norm.momentum, affine=False, device="meta")
        made.affine, made.weight, made.bias = norm.affine, norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = torch.zeros_like(torch.as_tensor(norm.num_batches_tracked))
        made.freeze_after, made.plain = freeze_after, type(norm)
        return made.train(norm.training)

    def to_plain(self) -> nn.modules.batchnorm._BatchNorm:
        """Return the norm as it was, with what was learned."""
        made = self.plain(self.num_features, self.eps, self.momentum, affine=False, device="meta")
        made.affine, made.weight, made.bias = self.affine, self.weight, self.bias
        made.running_mean, made.running_var = self.running_mean, self.running_var
        made.num_batches_tracked = self.num_batches_tracked
        return made.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if torch.compiler.is_compiling() or not _on_cpu(input):  # where asking for a number would break off, or wait
            return self._either(input)
        if int(self._batches()) < self.freeze_after:
            return super().forward(input)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _either(self, input: Tensor) -> Tensor:
        """Return the same by a choice of statistics inside the graph, whatever the counter says."""
        x, batches = input.float(), self._batches()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(x, axes, correction=0)
        frozen, old_mean, old_var = batches >= self.freeze_after, self.running_mean, self.running_var
        if old_mean is None or old_var is None:
            return super().forward(input)
        used_mean = torch.where(frozen, old_mean.clone(), mean)
        used_var = torch.where(frozen, old_var.clone(), var)
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            share = 1 / (batches + 1) if self.momentum is None else torch.full_like(old_mean[0], self.momentum)
            share = torch.where(frozen, 0.0, share)
            old_mean.lerp_(mean.to(old_mean.dtype), share.to(old_mean.dtype))
            old_var.lerp_((var * (count / max(1, count - 1))).to(old_var.dtype), share.to(old_var.dtype))
            batches.add_(1)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        y = (x - used_mean.reshape(shape)) * (used_var + self.eps).rsqrt().reshape(shape)
        if self.weight is not None:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the model was checked with the norm this one stands for."""

    def _batches(self) -> Tensor:
        return self.num_batches_tracked  # type: ignore[return-value]


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and type(x) is Tensor  # a fake tensor (a size estimate) has no numbers
