"""The image classification task: its loss by hand, what it refuses, and a toy ResNet that learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, DataError
from deepseek.models.resnet import ResNet, ResNetConfig
from deepseek.tasks.image_classification import ImageClassification, count_correct
from deepseek.tasks.task import mean_loss
from deepseek.train import Trainer


class Fixed(nn.Module):
    """Answers with the same logits whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.logits[: len(pixel_values)]


def batch(labels: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": torch.zeros(len(labels), 3, 4, 4), "labels": labels}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_sum_over_labelled_images(smoothing: float) -> None:
    logits = torch.randn(4, 5)
    labels = torch.tensor([3, 0, -100, 1])
    loss = ImageClassification(smoothing).loss(Fixed(logits), batch(labels))
    surprise, wanted = -logits.log_softmax(-1), 0.0
    for row, label in enumerate(labels.tolist()):
        if label >= 0:
            target = torch.full((5,), smoothing / 5)
            target[label] += 1 - smoothing
            wanted += float((target * surprise[row]).sum())
    assert float(loss.sum.detach()) == pytest.approx(wanted, rel=1e-5)
    assert loss.count == 3


def test_mixed_labels_are_shares() -> None:
    logits = torch.randn(2, 3)
    shares = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    loss = ImageClassification().loss(Fixed(logits), batch(shares))
    assert float(loss.sum.detach()) == pytest.approx(float(-(shares * logits.log_softmax(-1)).sum()), rel=1e-5)
    assert loss.count == 2


def test_bfloat16_logits_are_summed_in_float32() -> None:
    loss = ImageClassification().loss(Fixed(torch.randn(4, 5).bfloat16()), batch(torch.zeros(4, dtype=torch.int64)))
    assert loss.sum.dtype == torch.float32


def test_predictions_are_probabilities_without_gradients() -> None:
    logits = torch.randn(2, 3)
    found = ImageClassification().predict(Fixed(logits.bfloat16()), torch.zeros(2, 3, 4, 4))
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, logits.bfloat16().float().exp() / logits.bfloat16().float().exp().sum(1)[:, None])


def test_correct_answers_are_counted_among_the_best() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    labels = torch.tensor([1, 2, 0, -100])
    assert [count_correct(scores, labels, top) for top in (1, 2, 3, 9)] == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.tensor([0, 5]), "found:  5"),
        (torch.tensor([-1, 0]), "found:  -1"),
        (torch.tensor([[0], [1]]), "wrong shape"),
        (torch.tensor([0, 1], dtype=torch.int32), "torch.int64"),
        (torch.tensor([0.0, 1.0]), "wrong shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, named: str) -> None:
    with pytest.raises(DataError, match=named):
        ImageClassification().loss(Fixed(torch.randn(2, 5)), batch(labels))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_is_a_share(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        ImageClassification(smoothing)


def stripes(count: int, seed: int) -> dict[str, Tensor]:
    """Noise with stripes: lying (class 0), standing (1) or none (2)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 3, 16, 16, generator=generator) * 0.3
    wave = torch.arange(16).div(2, rounding_mode="floor").remainder(2) * 2.0 - 1
    images += (labels == 0)[:, None, None, None] * wave[:, None] + (labels == 1)[:, None, None, None] * wave
    return {"pixel_values": images, "labels": labels}


def test_a_toy_resnet_learns_to_tell_stripes() -> None:
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(num_labels=3, block="basic", depths=[1], hidden_sizes=[8], stem_size=8, image_size=16))
    data, task = [stripes(16, seed) for seed in range(20)], ImageClassification(label_smoothing=0.1)
    held_out, before = stripes(60, 99), mean_loss(model, data, task)
    trainer = Trainer(
        model=model,
        train_dataset=data,
        task=task,
        learning_rate=1e-2,
        compile=False,
        precision="fp32",
        tensorboard=False,
    )
    trainer.train()
    assert mean_loss(model, data, task) < 0.7 * before
    model.eval()
    right = count_correct(task.predict(model, held_out["pixel_values"]), held_out["labels"])
    assert right / 60 > 0.9
