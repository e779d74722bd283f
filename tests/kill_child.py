"""A training run to be killed anywhere: dropout, a shuffled loader, accumulation, checkpoints every second step.

`benchmarks.lives` forks a process for each life; `live(options)` runs in it. Options: `folder` of the run; `writer` of
its checkpoints: "none" (training waits), "thread" or "process". Into `folder.order` goes for each reading of the data
a line `start POSITION`, and for each batch given out a line `POSITION CHECKSUM`, over all lives.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import deepseek.train.trainer  # noqa: F401  # loaded before the fork
from deepseek.checkpoint import background
from deepseek.checkpoint.store import list_checkpoints
from deepseek.data import Loader
from deepseek.train import Trainer
from tests.toy_gpt import toy_config
from tests.toy_training import Samples

STEPS, EVERY, ACCUMULATE = 24, 2, 2


class Recorded:
    """A loader that writes down what it gives out, in a file that survives the process."""

    def __init__(self, loader: Loader, path: Path) -> None:
        self._loader = loader
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __len__(self) -> int:
        return len(self._loader)

    def iterate(self, start: int | None = None) -> Iterator[Any]:
        """Yield batches from position `start` on."""
        os.write(self._file, f"start {start or 0}\n".encode())
        for position, batch in enumerate(self._loader.iterate(start), start or 0):
            checksum = zlib.crc32(batch["input_ids"].numpy().tobytes())
            os.write(self._file, f"{position} {checksum}\n".encode())
            yield batch


def live(options: dict[str, Any]) -> None:
    """Start the run or go on with it; exit code 0 when it is done."""
    logging.basicConfig(stream=sys.stderr)
    torch.set_num_threads(1)
    folder = Path(options["folder"])
    if options["writer"] == "process":
        background.PROCESS_FROM = 0
    trainer = Trainer(
        model_config=toy_config(dropout=0.2),
        train_dataset=Recorded(Loader(Samples(), 4, seed=3), folder.with_suffix(".order")),
        output_dir=folder,
        learning_rate=1e-2,
        max_steps=STEPS,
        gradient_accumulation_steps=ACCUMULATE,
        checkpoint_every=EVERY,
        async_checkpoints=options["writer"] != "none",
        log_every=1,
        precision="fp32",
        compile=False,
        tensorboard=False,
        progress=False,
    )
    trainer.train(resume=bool(list_checkpoints(folder / "checkpoints")))
