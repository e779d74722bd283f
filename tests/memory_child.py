"""Trains for two steps in a process of its own and prints the peak of its memory: `-m tests.memory_child JSON`.

Options: `model` (values for `deepseek.models.factory.build`), `rows`, `settings` (fields of TrainConfig). A toy run
comes first, so that what torch loads at its first step is not counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepseek.models.factory import build
from deepseek.optim.build import build_optimizer
from deepseek.optim.precision import Precision
from deepseek.tasks.image_classification import ImageClassification
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import Task
from deepseek.train.config import TrainConfig
from deepseek.train.memory.allocator import give_large_blocks_back
from deepseek.train.recompute import apply_recompute
from deepseek.train.step import TrainStep

TOYS: dict[str, dict[str, Any]] = {
    "GPT": {"num_layers": 1, "d_model": 64, "vocab_size": 64, "max_length": 32},
    "ResNet": {"image_size": 64, "stem_size": 8, "hidden_sizes": [8, 8, 8, 8]},
    "ViT": {"num_layers": 1, "d_model": 32, "num_heads": 2, "image_size": 32},
}


def case(model: nn.Module, rows: int) -> tuple[Task, Any]:
    """Return the task of a model and a batch of `rows`."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    if hasattr(config, "vocab_size"):
        ids = torch.randint(config.vocab_size, (rows, config.max_length), generator=generator)
        return LanguageModeling(), {"input_ids": ids, "labels": ids.clone()}
    images = torch.randn(rows, 3, config.image_size, config.image_size, generator=generator)
    return ImageClassification(), {"pixel_values": images, "labels": torch.zeros(rows, dtype=torch.int64)}


def train(values: dict[str, Any], rows: int, config: TrainConfig, steps: int) -> None:
    """Do some steps as the settings say."""
    torch.manual_seed(0)
    model = build(values).train()
    task, batch = case(model, rows)
    apply_recompute(model, config.recompute)
    precision = Precision(config.precision, torch.device("cpu"))
    step = TrainStep(model, task, build_optimizer(model, config), precision)
    for _ in range(steps):
        step([batch] * config.gradient_accumulation_steps)


def memory(name: str) -> int:
    """Return a size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Warm up, train, print the peak above what the process had before."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    give_large_blocks_back()
    config = TrainConfig(async_checkpoints=False, **options["settings"])
    train({"name": options["model"]["name"], **TOYS[options["model"]["name"]]}, 2, config, 2)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew (proc(5))
    train(options["model"], options["rows"], config, 2)
    print(json.dumps({"peak": memory("VmHWM") - before}))


if __name__ == "__main__":
    main()
