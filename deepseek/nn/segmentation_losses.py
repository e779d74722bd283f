"""Losses of segmentation: Dice, Focal and their sum, for one class or several, in two or three dimensions.

Logits are (batch, channels, *space): one channel for foreground against background, else one for each class, the
background being class 0. Targets are int64 (batch, *space), with -100 where there is none. Each function returns a loss
for each image, (batch,) in float32; the caller sums.
Sources: Dice, Milletari et al. 2016, arXiv:1606.04797, in the form without squares of Sudre et al. 2017,
arXiv:1707.03237; Focal, Lin et al. 2017, arXiv:1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.losses import IGNORE

ALPHA = 0.25
"""What the foreground weighs in the Focal loss, as in its paper; the background weighs the rest."""


def dice_loss(logits: Tensor, targets: Tensor, ignore_index: int = IGNORE, smooth: float = 1.0) -> Tensor:
    """Return 1 - Dice for each image: the mean over the channels of 1 - (2 * shared + smooth) / (both + smooth).

    `smooth`, in pixels, makes a class that is neither there nor predicted cost nothing.
    """
    valid = _valid(logits, targets, ignore_index)
    log_chances, one_hot = _log_chances(logits), _one_hot(logits, targets, valid)
    chances = log_chances.exp()
    if logits.shape[1] == 1:  # the foreground alone
        chances, one_hot = chances[:, 1:], one_hot[:, 1:]
    chances = chances * valid[:, None]
    shared = (chances * one_hot).flatten(2).sum(-1)
    both = (chances + one_hot).flatten(2).sum(-1)
    return (1 - (2 * shared + smooth) / (both + smooth)).mean(1)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = ALPHA,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Return -alpha_t * (1 - p_t)**gamma * log p_t for each image, averaged over its pixels with a target.

    p_t is the chance of the right class. `alpha`: what the foreground weighs, the background weighing 1 - alpha; or one
    weight for each class (two for one channel); None weighs all by 1.
    """
    valid = _valid(logits, targets, ignore_index)
    right = torch.where(valid, targets, 0)[:, None]
    log_right = _log_chances(logits).gather(1, right)[:, 0]
    loss = -((1 - log_right.exp()).clamp(min=0) ** gamma) * log_right
    if alpha is not None:
        loss = loss * _class_weights(alpha, max(logits.shape[1], 2), logits.device)[right[:, 0]]
    pixels = valid.flatten(1).sum(-1).clamp(min=1)
    return (loss * valid).flatten(1).sum(-1) / pixels


def dice_focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = ALPHA,
    ignore_index: int = IGNORE,
    focal_weight: float = 1.0,
) -> Tensor:
    """Return dice + focal_weight * focal for each image, (batch,)."""
    focal = focal_loss(logits, targets, gamma, alpha, ignore_index)
    return dice_loss(logits, targets, ignore_index) + focal_weight * focal


def _log_chances(logits: Tensor) -> Tensor:
    """Return log probabilities (batch, classes, *space) in float32; of one channel: background and foreground."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat((F.logsigmoid(-logits), F.logsigmoid(logits)), dim=1)
    return logits.log_softmax(1)


def _one_hot(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return (batch, classes, *space) in float32, all zero where there is no target."""
    classes = torch.arange(max(logits.shape[1], 2), device=logits.device).view(-1, *[1] * (targets.dim() - 1))
    return ((targets[:, None] == classes) & valid[:, None]).float()


def _class_weights(alpha: float | Sequence[float], classes: int, device: torch.device) -> Tensor:
    weights = [1 - alpha] + [alpha] * (classes - 1) if isinstance(alpha, int | float) else list(alpha)
    if len(weights) != classes:
        raise ModelError("alpha has the wrong number of weights", found=len(weights), wanted=f"{classes}, one a class")
    return torch.tensor(weights, device=device, dtype=torch.float32)


def _valid(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Return where there is a target (batch, *space). Raises ModelError for other shapes, types and class numbers."""
    valid = targets != ignore_index
    if torch.compiler.is_compiling():
        return valid
    if targets.shape != (logits.shape[0], *logits.shape[2:]) or targets.is_floating_point():
        raise ModelError(
            "targets don't fit the logits",
            found=f"{targets.dtype} of shape {tuple(targets.shape)}",
            wanted=f"int64 of shape {(logits.shape[0], *logits.shape[2:])}",
        )
    classes = max(logits.shape[1], 2)
    if targets.device.type == "cpu":  # elsewhere a look at the values would wait for the device
        wrong = targets[valid & ((targets < 0) | (targets >= classes))]
        if wrong.numel():
            raise ModelError(
                "targets has a class the model does not know", found=int(wrong[0]), wanted=f"0 to {classes - 1}"
            )
    return valid
