"""A trainer of toy models with its data, for tests of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepseek.train import Trainer
from tests.toy_gpt import toy_batches, toy_config

QUIET: dict[str, Any] = {"compile": False, "precision": "fp32", "tensorboard": False}


def trainer(**changes: Any) -> Trainer:
    settings = {"model_config": toy_config(), "train_dataset": toy_batches(6), "learning_rate": 1e-2, **QUIET}
    settings |= changes
    if "model" in changes:
        settings.pop("model_config")
    return Trainer(**settings)


def weights(model: nn.Module | None) -> Tensor:
    assert model is not None
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))


def circles() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(160, 4, generator=torch.Generator().manual_seed(2))
    return inputs, (inputs.square().sum(1) > 3.5).long()


def pairs() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = circles()
    return list(zip(inputs.split(16), targets.split(16), strict=True))


class Samples:
    """What a Loader reads: the toy sequences, in any order."""

    def __init__(self) -> None:
        batches = toy_batches(6)
        self.fields = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}

    def __len__(self) -> int:
        return 24

    def get_batch(self, epoch: int, indices: Any) -> dict[str, Any]:
        return {name: values[indices] for name, values in self.fields.items()}
