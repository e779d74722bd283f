"""A small trained classifier with its data, for tests of compression: which of ten places has a bright spot."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek import bundle
from deepseek.models.mlp import MLP, MLPConfig
from deepseek.tasks.classification import Classification

FEATURES, CLASSES = 40, 10


def spots(count: int, seed: int = 0, batch_size: int = 32) -> list[dict[str, Tensor]]:
    """Return batches of noise with a raised stretch whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    features = torch.randn(count, FEATURES, generator=generator)
    places = torch.arange(FEATURES)[None] // (FEATURES // CLASSES)
    features = features + 1.6 * (places == labels[:, None])
    return [
        {"features": features[start : start + batch_size], "labels": labels[start : start + batch_size]}
        for start in range(0, count, batch_size)
    ]


def trained(folder: Path, width: int = 64, steps: int = 120) -> Path:
    """Return a bundle of an MLP that was trained on `spots(1024, seed=1)`."""
    torch.manual_seed(0)
    model: nn.Module = MLP(MLPConfig(input_shape=[FEATURES], num_labels=CLASSES, hidden_sizes=[width, width]))
    data, task = spots(1024, seed=1), Classification()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = data[step % len(data)]
        loss = task.loss(model.train(), batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
    return bundle.save(model.eval(), folder, task="classification", labels=[str(label) for label in range(CLASSES)])
