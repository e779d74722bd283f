"""Output layer and cross-entropy in one: the gradients are formed in the forward pass, chunk by chunk of the items.

A chunk's logits live only until its part of the gradients is added up, so that neither the logits nor their gradient
(1.6 GB in float32 at 4,096 items and 50,000 classes) are ever whole in memory, and nothing is computed twice.
Not here: output layers other than one matrix (`losses.chunked_cross_entropy` takes any).
Sources: Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989 (gradients in the forward pass); Wijmans et al. 2024, "Cut
Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.losses import IGNORE, cross_entropy_sum

CHUNK_BYTES = 48 << 20
"""Logits of a chunk, in float32: with its temporaries a chunk takes about two and a half times as much."""


def linear_cross_entropy_sum(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Return `losses.cross_entropy_sum(linear(features, weight, bias), labels)`, a scalar of float32.

    `features` (items, d_model), `weight` (classes, d_model), `bias` (classes,), `labels` (items,) of int64, -100 where
    none. Under autocast the products are in its dtype. Without gradients it is the loss alone. The result can be
    differentiated once. Raises ModelError for shapes that do not fit.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1] or weight.shape[1:] != features.shape[1:]:
        raise ModelError(
            "features, weight and labels don't fit together",
            found=f"{tuple(features.shape)}, {tuple(weight.shape)}, {tuple(labels.shape)}",
            wanted="(items, d_model), (classes, d_model), (items,)",
        )
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = torch.promote_types(features.dtype, weight.dtype)
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    settings = _Settings(dtype, rows, label_smoothing, z_loss)
    grad = torch.is_grad_enabled()
    if not grad or not any(x is not None and x.requires_grad for x in (features, weight, bias)):
        return _loss_alone(features, weight, bias, labels, settings)
    found: Tensor = _LinearCrossEntropy.apply(features, weight, bias, labels, settings)  # type: ignore[no-untyped-call]
    return found


class _Settings:
    """What a pass needs to know besides tensors."""

    def __init__(self, dtype: torch.dtype, rows: int, smoothing: float, z_loss: float) -> None:
        self.dtype, self.rows, self.smoothing, self.z_loss = dtype, rows, smoothing, z_loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss; its gradients are there when the forward pass is done."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, settings: _Settings
    ) -> Tensor:
        x, w = features.to(settings.dtype), weight.to(settings.dtype)
        b = None if bias is None else bias.to(settings.dtype)
        total = torch.zeros((), device=features.device)
        d_features = torch.empty_like(x) if features.requires_grad else None
        d_weight = torch.zeros(weight.shape, device=w.device) if weight.requires_grad else None
        d_bias = torch.zeros(bias.shape, device=w.device) if bias is not None and bias.requires_grad else None
        for start in range(0, x.shape[0], settings.rows):
            part = x[start : start + settings.rows]
            loss, gradient = _chunk(F.linear(part, w, b), labels[start : start + settings.rows], settings)
            total = total + loss
            if d_bias is not None:
                d_bias += gradient.sum(0)
            low = gradient.to(settings.dtype)
            del gradient
            if d_features is not None:
                torch.mm(low, w, out=d_features[start : start + settings.rows])
            if d_weight is not None:
                if settings.dtype is torch.float32:
                    d_weight.addmm_(low.t(), part)
                else:
                    d_weight += torch.mm(low.t(), part)
        ctx.parts = (d_features, d_weight, d_bias)
        ctx.dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        parts, ctx.parts = ctx.parts, None
        if parts is None:
            raise ModelError("this loss has been differentiated already", fix="compute it again")
        done = [
            None if part is None else part.mul_(scale.to(part.dtype)).to(dtype)
            for part, dtype in zip(parts, ctx.dtypes, strict=True)
        ]
        return (*done, None, None)


def _chunk(logits: Tensor, labels: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Return the summed loss of some items, and its gradient with respect to their logits, (items, classes) float32."""
    valid = labels != IGNORE
    places = torch.where(valid, labels, 0)[:, None]
    gradient = logits.float().log_softmax(-1)
    chosen = gradient.gather(1, places)
    loss = (settings.smoothing - 1) * chosen
    if settings.smoothing:
        loss = loss - settings.smoothing * gradient.mean(-1, keepdim=True)
    gradient.exp_()
    if settings.z_loss:
        normaliser = logits.gather(1, places).float() - chosen
        loss = loss + settings.z_loss * normaliser.square()
        gradient *= 1 + 2 * settings.z_loss * normaliser
    if settings.smoothing:
        gradient -= settings.smoothing / logits.shape[1]
    gradient.scatter_add_(1, places, torch.full_like(chosen, settings.smoothing - 1))
    gradient *= valid[:, None]
    return torch.where(valid, loss.squeeze(1), 0).sum(), gradient


def _loss_alone(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, settings: _Settings) -> Tensor:
    x, w = features.to(settings.dtype), weight.to(settings.dtype)
    b = None if bias is None else bias.to(settings.dtype)
    total = torch.zeros((), device=features.device)
    for start in range(0, x.shape[0], settings.rows):
        logits = F.linear(x[start : start + settings.rows], w, b)
        targets = labels[start : start + settings.rows]
        total = total + cross_entropy_sum(logits, targets, settings.smoothing, settings.z_loss)
    return total
