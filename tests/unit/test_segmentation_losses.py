"""Dice and Focal against their formulas, in loops; Dice and IoU as scores; the task."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import DataError, ModelError
from deepseek.evaluate.segmentation import evaluate_segmentation
from deepseek.metrics.confusion import confusion
from deepseek.metrics.segmentation import score_confusion
from deepseek.nn.segmentation_losses import dice_focal_loss, dice_loss, focal_loss
from deepseek.tasks.segmentation import Segmentation, chosen_classes


def example(channels: int, dims: int = 2, ignored: bool = True) -> tuple[Tensor, Tensor]:
    space = (5, 4, 3)[:dims]
    logits, targets = torch.randn(2, channels, *space) * 3, torch.randint(max(channels, 2), (2, *space))
    if ignored:
        targets[torch.rand(targets.shape) < 0.3] = -100
    return logits, targets


def chances_of(logits: Tensor) -> Tensor:
    """Probabilities (batch, classes, pixels) of every class, background first."""
    flat = logits.double().flatten(2)
    if flat.shape[1] == 1:
        right = 1 / (1 + torch.exp(-flat))
        return torch.cat((1 - right, right), dim=1)
    return flat.exp() / flat.exp().sum(1, keepdim=True)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_dice_is_its_formula(channels: int, dims: int) -> None:
    logits, targets = example(channels, dims)
    chances, flat = chances_of(logits), targets.flatten(1)
    for image in range(2):
        parts = []
        for label in [1] if channels == 1 else range(channels):
            shared = found = wanted = 0.0
            for pixel, target in enumerate(flat[image].tolist()):
                if target != -100:
                    p = float(chances[image, label, pixel])
                    shared, found, wanted = shared + p * (target == label), found + p, wanted + (target == label)
            parts.append(1 - (2 * shared + 1) / (found + wanted + 1))
        assert float(dice_loss(logits, targets)[image]) == pytest.approx(sum(parts) / len(parts), abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("channels", "alpha"), [(1, 0.25), (3, 0.4), (1, None), (3, [0.2, 0.3, 0.9]), (1, [2.0, 1.0])])
def test_focal_is_its_formula(channels: int, alpha: float | list[float] | None, gamma: float) -> None:
    logits, targets = example(channels, 3)
    chances, flat = chances_of(logits), targets.flatten(1)
    found = focal_loss(logits, targets, gamma, alpha)
    for image in range(2):
        terms = []
        for pixel, target in enumerate(flat[image].tolist()):
            if target != -100:
                weight = 1.0
                if isinstance(alpha, list):
                    weight = alpha[target]
                elif alpha is not None:
                    weight = alpha if target > 0 else 1 - alpha
                p = float(chances[image, target, pixel])
                terms.append(-weight * (1 - p) ** gamma * math.log(p))
        assert float(found[image]) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, targets = example(4, ignored=False)
    wanted = F.cross_entropy(logits, targets, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(focal_loss(logits, targets, gamma=0.0, alpha=None), wanted)
    binary, mask = example(1, ignored=False)
    wanted = F.binary_cross_entropy_with_logits(binary[:, 0], mask.float(), reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(focal_loss(binary, mask, gamma=0.0, alpha=None), wanted)


def test_the_sum_is_the_sum() -> None:
    logits, targets = example(3)
    wanted = dice_loss(logits, targets) + 0.5 * focal_loss(logits, targets)
    torch.testing.assert_close(dice_focal_loss(logits, targets, focal_weight=0.5), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_finite_and_point_downhill_even_for_certain_logits(channels: int) -> None:
    targets = torch.tensor([[[0, 1], [1, -100]]])
    for size in (0.0, 1.0, 80.0, 1e4):
        logits = (torch.randn(1, channels, 2, 2) * size).requires_grad_()
        loss = dice_focal_loss(logits, targets).sum()
        loss.backward()
        assert bool(loss.isfinite()) and bool(logits.grad.isfinite().all())
        assert not logits.grad[..., 1, 1].any()  # no target there
        lower = dice_focal_loss(logits.detach() - 1e-2 * logits.grad, targets).sum()
        assert float(lower) <= float(loss.detach()) + 1e-6


def test_gradients_agree_with_finite_differences() -> None:
    targets = torch.randint(3, (1, 4, 3))
    # The losses compute in float32; a wide step and tolerance make up for it.
    logits = torch.randn(1, 3, 4, 3, requires_grad=True)
    dice_focal_loss(logits, targets).sum().backward()
    for index in [(0, 0, 0, 0), (0, 1, 2, 1), (0, 2, 3, 2)]:
        step = torch.zeros_like(logits)
        step[index] = 1e-2
        ends = [float(dice_focal_loss(logits.detach() + sign * step, targets).sum()) for sign in (-1, 1)]
        assert float(logits.grad[index]) == pytest.approx((ends[1] - ends[0]) / 2e-2, abs=2e-5)


def test_nothing_to_learn_costs_nothing() -> None:
    ignored = torch.full((2, 3, 3), -100)
    assert dice_focal_loss(torch.randn(2, 3, 3, 3), ignored).tolist() == [0.0, 0.0]
    empty = torch.zeros(1, 3, 3, dtype=torch.int64)
    assert float(dice_focal_loss(torch.full((1, 1, 3, 3), -30.0), empty)) < 1e-6


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), r"\(2, 4\)"),
        (torch.zeros(2, 4, 4), "float32"),
        (torch.full((2, 4, 4), 3), "0 to 2"),
        (torch.full((2, 4, 4), -1), "found:  -1"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        dice_focal_loss(torch.zeros(2, 3, 4, 4), targets)
    with pytest.raises(ModelError, match="3, one a class"):
        focal_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), alpha=[0.5, 0.5])


def test_scores_are_their_formulas() -> None:
    found, wanted = torch.randint(4, (3, 6, 5)), torch.randint(4, (3, 6, 5))
    wanted[0, :2] = -100
    found[found == 3] = 0
    wanted[wanted == 3] = 1  # class 3 is nowhere
    scores = score_confusion(confusion(found, wanted, 4))
    pairs = [(f, w) for f, w in zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True) if w != -100]
    for label in range(3):
        here, there = (
            {i for i, p in enumerate(pairs) if p[0] == label},
            {i for i, p in enumerate(pairs) if p[1] == label},
        )
        assert scores.dice[label] == pytest.approx(2 * len(here & there) / (len(here) + len(there)))
        assert scores.iou[label] == pytest.approx(len(here & there) / len(here | there))
    assert np.isnan(scores.dice[3]) and np.isnan(scores.iou[3])
    assert scores.accuracy == pytest.approx(sum(f == w for f, w in pairs) / len(pairs))
    report = scores.report()
    assert report["dice"] == pytest.approx(scores.dice[1:3].mean()) and report["iou"] == pytest.approx(
        scores.iou[1:3].mean()
    )


def test_scores_of_nothing_and_of_unknown_classes_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_segmentation(nn.Identity(), [])
    with pytest.raises(DataError, match="0 to 2"):
        confusion(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 3]), 3)
    background = score_confusion(confusion(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 2))
    assert background.report() == {"dice": 1.0, "iou": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_task_sums_over_images_predicts_and_is_scored(channels: int) -> None:
    model, task = nn.Conv2d(2, channels, 1), Segmentation()
    batch = {"pixel_values": torch.rand(3, 2, 4, 5), "masks": torch.randint(2, (3, 4, 5))}
    loss = task.loss(model, batch)
    logits = model(batch["pixel_values"])
    torch.testing.assert_close(loss.sum, dice_focal_loss(logits, batch["masks"]).sum())
    assert loss.count == task.count(batch) == 3
    chances = task.predict(model, batch["pixel_values"])
    labels = (logits[:, 0] > 0).long() if channels == 1 else logits.argmax(1)
    assert torch.equal(chosen_classes(chances), labels)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 1), slice(1, 3))]
    scores = evaluate_segmentation(model.train(), parts, device=torch.device("cpu"))
    assert scores.accuracy == pytest.approx(float((labels == batch["masks"]).float().mean())) and model.training
    assert task.metrics(0.3) == {"loss": 0.3}
