"""The run that every contestant of `kill_anywhere` trains: a small network with dropout on shuffled data.

Each step leaves a line `STEP SECONDS` (monotonic) in `FOLDER.steps`, and the end of a run the SHA-256 of its weights in
`FOLDER.done`: both outlive the process.
Not here: the contestants (`kill_ours`, `kill_hf`, `kill_lightning`) and the killer (`kill_run`).
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, ROWS, BATCHES = 64, 8, 16
LEARNING_RATE, MAX_NORM = 1e-3, 1.0


@dataclass(frozen=True)
class Case:
    """What a life is asked for: the run's folder, steps in all and between checkpoints, sizes of network and samples.

    At step `die_at` it kills itself.
    """

    folder: Path
    steps: int
    every: int
    width: int
    time: int
    die_at: int | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Case:
        """Return the case that a nursery's options describe."""
        return cls(**{**options, "folder": Path(options["folder"])})

    def step_done(self, step: int) -> None:
        """Note that an optimizer step is done."""
        line = f"{step} {time.monotonic()}\n".encode()
        handle = os.open(self.folder.with_suffix(".steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, line)
        os.close(handle)
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def finished(self, model: nn.Module) -> None:
        """Note the weights that the run ended with."""
        digest = hashlib.sha256()
        for _, parameter in sorted(model.named_parameters()):
            digest.update(parameter.detach().contiguous().numpy().tobytes())
        self.folder.with_suffix(".done").write_text(digest.hexdigest())


class Net(nn.Module):
    """Two linear layers with dropout on top of a lookup: `forward(input_ids)` gives logits (rows, time, vocabulary)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lookup = nn.Embedding(VOCABULARY, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.up(self.lookup(input_ids))), 0.1, self.training)
        logits: Tensor = self.down(hidden)
        return logits


def make_net(width: int) -> Net:
    """Return the network; its weights are always the same."""
    torch.manual_seed(0)
    return Net(width)


def loss_of(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(model(input_ids).flatten(0, 1), labels.flatten())


def samples(time: int) -> dict[str, Tensor]:
    """Return the data set, `input_ids` and `labels` of (samples, time)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(VOCABULARY, (ROWS * BATCHES, time), generator=generator)
    return {"input_ids": inputs, "labels": (inputs * 7 + 3) % VOCABULARY}


def rows(time: int) -> list[dict[str, Tensor]]:
    """Return the data set as a list of samples."""
    data = samples(time)
    return [{name: values[index] for name, values in data.items()} for index in range(ROWS * BATCHES)]
