"""The estimate against the memory that real training steps take, in processes of their own: within 10%."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.models.factory import build
from deepseek.optim.precision import Precision
from deepseek.train.config import TrainConfig
from deepseek.train.memory.allocator import give_large_blocks_back
from deepseek.train.memory.estimate import estimate_training
from tests.memory_child import case

GPT = {"name": "GPT", "vocab_size": 8192, "max_length": 256, "num_layers": 4, "d_model": 256}
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "gpt bf16": (GPT, 6, {"precision": "bf16"}),
    "gpt fp32, all recomputed": (GPT, 6, {"precision": "fp32", "recompute": "full"}),
    "vit fp32": ({"name": "ViT", "num_layers": 4, "d_model": 384, "num_heads": 6}, 6, {"precision": "fp32"}),
    "resnet bf16, accumulated": (
        {"name": "ResNet", "block": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
        4,
        {"precision": "bf16", "gradient_accumulation_steps": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(name: str) -> None:
    if not Path("/proc/self/clear_refs").exists() or not give_large_blocks_back():
        pytest.skip("needs Linux with glibc")
    values, rows, settings = CASES[name]
    config = TrainConfig(async_checkpoints=False, **settings)
    with torch.device("meta"):
        model = build(values)
    task, batch = case(model, rows)
    estimate = estimate_training(
        lambda: model, task, batch, config, Precision(config.precision, torch.device("cpu"))
    ).total
    options = json.dumps({"model": values, "rows": rows, "settings": settings})
    run = subprocess.run(
        [sys.executable, "-m", "tests.memory_child", options], capture_output=True, text=True, timeout=120, check=True
    )
    measured = json.loads(run.stdout)["peak"]
    assert measured > 180 << 20  # large enough that what a process takes by chance does not count
    assert 0.9 <= estimate / measured <= 1.1, (estimate >> 20, measured >> 20)
