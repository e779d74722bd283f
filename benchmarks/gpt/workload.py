"""The GPT workload that every contestant of `train_gpt` gets: sizes, settings, tokens, documents and initial weights.

Written once to a folder by the front process and read by each contestant, so that all see the same bytes.
Not here: writing them (`benchmarks.gpt.prepare`) and any training loop.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """Sizes of model and batch, and the settings of the optimizer. `folder` holds the files."""

    folder: Path
    vocab_size: int = 8192
    length: int = 256
    layers: int = 6
    width: int = 384
    heads: int = 6
    batch_size: int = 8
    steps: int = 30
    skip: int = 5
    """Steps left out of the timing at the start: compilation and first allocations."""
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    max_norm: float = 1.0
    compile: bool = True
    """Whether the contestants that compile do so; toy runs in tests do not."""
    eos_id: int = 0
    pad_id: int = 0
    """What the peers pad with: a special token that no document holds, so that the end token stays a target."""
    documents_per_batch: int = 0
    """Documents in a padded batch that hold, on average, as many target tokens as a packed batch."""

    @property
    def tokens_per_step(self) -> int:
        """Target tokens in one full batch."""
        return self.batch_size * self.length

    @property
    def weights_path(self) -> Path:
        """The file of the initial weights."""
        return self.folder / "weights.safetensors"

    def save(self) -> None:
        """Write the settings into the folder."""
        settings = {**asdict(self), "folder": None}
        (self.folder / "workload.json").write_text(json.dumps(settings))

    @classmethod
    def load(cls, folder: str | Path) -> Workload:
        """Read the settings that `save` wrote."""
        settings = json.loads((Path(folder) / "workload.json").read_text())
        settings["betas"] = tuple(settings["betas"])
        return cls(**{**settings, "folder": Path(folder)})

    def weights(self) -> dict[str, Tensor]:
        """Return the initial weights under the names of `ReferenceGPT`."""
        return load_file(self.weights_path)

    def weights_in_order(self) -> list[tuple[str, Tensor]]:
        """Return the initial weights in the order in which data passes them."""
        weights = self.weights()
        names = ["token.weight", "position.weight"]
        for block in range(self.layers):
            parts = ("norm1", "qkv", "out", "norm2", "up", "down")
            names += [f"blocks.{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias")]
        return [(name, weights[name]) for name in [*names, "norm.weight", "norm.bias"]]

    def batches(self) -> list[Batch]:
        """Return the batches in training order: `input_ids` and `labels`, each (batch, length) int64.

        Labels are shifted by one already, no label is masked; consecutive windows of the token stream.
        """
        tokens = torch.from_numpy(np.load(self.folder / "tokens.npy").astype(np.int64))
        inputs = tokens[: self.steps * self.tokens_per_step].view(self.steps, self.batch_size, self.length)
        labels = tokens[1 : self.steps * self.tokens_per_step + 1].view_as(inputs)
        return [{"input_ids": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]

    def documents(self, name: str = "train") -> list[NDArray[np.uint16]]:
        """Return the documents of "train" or "held_out" as tokens, each ending with `eos_id`."""
        with np.load(self.folder / f"{name}_documents.npz") as arrays:
            return np.split(arrays["tokens"], arrays["ends"][:-1])
