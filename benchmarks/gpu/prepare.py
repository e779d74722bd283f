"""Writes the workload of `gpu_train`: seeded tokens that come as often as words do, and initial weights.

Speed does not depend on what the tokens say. Not here: real text (`benchmarks.gpt.prepare`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.gpt.prepare import write_weights
from benchmarks.gpt.workload import Workload

SHAPE = Workload(
    Path(), vocab_size=50265, length=2048, layers=24, width=1536, heads=24, batch_size=8, steps=28, skip=10
)
"""The GPT of `Trainer(model_config=GPTConfig(vocab_size=50265, max_length=2048, num_layers=24, d_model=1536))`."""


def write_workload(folder: Path, shape: Workload = SHAPE) -> Workload:
    """Write tokens and weights into `folder`; the n-th most frequent token comes 1/n as often as the first (Zipf)."""
    workload = replace(shape, folder=folder)
    chance = 1 / np.arange(1, workload.vocab_size + 1)
    random = np.random.default_rng(0)
    count = workload.steps * workload.tokens_per_step + 1
    tokens = random.choice(workload.vocab_size, size=count, p=chance / chance.sum())
    np.save(folder / "tokens.npy", tokens.astype(np.uint16))
    write_weights(workload)
    workload.save()
    return workload
