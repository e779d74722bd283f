"""One contestant of `prune`: `python -m benchmarks.children.prune_run NAME RESULT`.

`ours` and the `torch-pruning` names train a small ResNet on digits, prune half of its channels in steps with training
after each, and report the loss on digits held out, the mean over seeds. `resnet50` and `bert-base` report how much
faster and smaller the templates are at half of their channels, heads and widths: both forms timed in turns.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.compress.pruning import PruneConfig, prune_and_recover, prune_model
from deepseek.data.readers.idx import read_idx
from deepseek.lazy import require
from deepseek.models import build
from deepseek.models.resnet import ResNet, ResNetConfig
from deepseek.tasks.image_classification import ImageClassification

RATIO, STEPS, RECOVERY, SEEDS, BATCH, HELD_OUT = 0.5, 3, 60, 5, 32, 200
DENSE_STEPS, DENSE_RATE = 250, 3e-3
PAIRS = 5

Batch = dict[str, Tensor]


class Digits(NamedTuple):
    """Batches to train on, and the digits held out."""

    train: list[Batch]
    held_out: Batch


def digits(seed: int) -> Digits:
    """Return the digits of MNIST's test files below DEEPSEEK_TEST_DATA, cut in two, in an order of the seed's.

    The file of labels that many machines have is cut off: images without a label are left out.
    """
    folder = Path(os.environ["DEEPSEEK_TEST_DATA"]) / "vision" / "mnist_t10k"
    labels = torch.from_numpy(read_idx(folder / "t10k-labels-idx1-ubyte.gz", partial=True).copy()).long()
    images = torch.from_numpy(read_idx(folder / "t10k-images-idx3-ubyte.gz")[: len(labels)].copy())
    images = images.float()[:, None] / 255
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    batches = [{"pixel_values": images[rows], "labels": labels[rows]} for rows in torch.split(order[HELD_OUT:], BATCH)]
    return Digits(batches[:-1], {"pixel_values": images[order[:HELD_OUT]], "labels": labels[order[:HELD_OUT]]})


def dense(data: Digits, seed: int) -> ResNet:
    """Return the trained model that all contestants begin with."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=1, num_labels=10, image_size=28, block="basic", depths=[1, 1, 1], hidden_sizes=[32, 64, 128],
        stem_size=32,
    )  # fmt: skip
    model = ResNet(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=DENSE_RATE)
    plain_training(model, data.train, optimizer, DENSE_STEPS)
    return model


def plain_training(model: nn.Module, batches: list[Batch], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train in the loop of torch's tutorials, the rate falling to zero along a cosine."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["pixel_values"]), batch["labels"])
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    model.eval()


def loss_of(model: nn.Module, batch: Batch) -> float:
    """Return the mean loss of a batch."""
    with torch.no_grad():
        return float(F.cross_entropy(model(batch["pixel_values"]), batch["labels"]))


def ours(model: ResNet, data: Digits) -> nn.Module:
    """Prune and train with our verb and our trainer."""
    config = PruneConfig(ratio=RATIO, iterative_steps=STEPS, what=["channels"], round_to=1)
    settings = {
        "learning_rate": DENSE_RATE, "batch_size": BATCH, "compile": False, "progress": False, "precision": "fp32",
        "device": "cpu", "weight_decay": 0.01,
    }  # fmt: skip
    return prune_and_recover(model, config, ImageClassification(), data.train, steps=RECOVERY, settings=settings)[0]


def torch_pruning(model: ResNet, data: Digits, optimizer: str) -> nn.Module:
    """Prune in the steps of torch-pruning's example: `step()`, then training, with its optimizer or with ours."""
    tp = require("torch_pruning", "compress")
    pruner = tp.pruner.MetaPruner(
        model,
        data.train[0]["pixel_values"][:2],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        iterative_steps=STEPS,
        pruning_ratio=RATIO,
        ignored_layers=[model.classifier],
    )
    for _ in range(STEPS):
        pruner.step()
        if optimizer == "sgd":
            chosen: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4)
        else:
            chosen = torch.optim.AdamW(model.parameters(), lr=DENSE_RATE)
        plain_training(model, data.train, chosen, RECOVERY)
    return model


def recovered(name: str) -> dict[str, Any]:
    """Return the losses after recovery of one contestant."""
    losses, before, sizes = [], [], set()
    for seed in range(SEEDS):
        data = digits(seed)
        model = dense(data, seed)
        before.append(loss_of(model, data.held_out))
        small = ours(model, data) if name == "ours" else torch_pruning(model, data, name.rpartition(" ")[2])
        losses.append(loss_of(small, data.held_out))
        sizes.add(sum(weight.numel() for weight in small.parameters()))
    return {
        "value": statistics.mean(losses),
        "outputs": {"dense_loss": statistics.mean(before), "parameters": float(max(sizes))},
        "details": {"losses": losses, "dense_losses": before},
    }


def speed(name: str) -> dict[str, Any]:
    """Return how many times faster a template answers one input at half of its channels, heads and widths."""
    torch.manual_seed(0)
    model: Any = build(name).eval()
    inputs = model.example_inputs(1)
    if name.startswith("bert"):
        ids = torch.randint(1000, (1, 128))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    small, report = prune_model(model, PruneConfig(ratio=RATIO), inputs)
    times: dict[str, list[float]] = {"whole": [], "pruned": []}
    with torch.no_grad():
        for turn in range(PAIRS + 1):
            for side, form in (("whole", model), ("pruned", small)):
                start = time.perf_counter()
                form(**inputs)
                if turn:  # the first turn warms up
                    times[side].append(time.perf_counter() - start)
    whole, pruned = statistics.median(times["whole"]), statistics.median(times["pruned"])
    return {
        "value": pruned * 1e3,
        "outputs": {
            "times_faster": whole / pruned,
            "size_ratio": report.parameters[1] / report.parameters[0],
            "flops_ratio": report.flops[1] / report.flops[0],
        },
        "details": {"whole_ms": whole * 1e3, "pruned_ms": pruned * 1e3},
    }


def main(name: str, result: str) -> None:
    """Play one contestant and write its result file."""
    found = speed(name) if name in ("resnet50", "bert-base") else recovered(name)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
