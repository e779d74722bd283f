"""The masked-token workload that every contestant of `train_bert` gets: sizes, settings, batches and initial weights.

Written once to a folder (`benchmarks.bert.prepare`) and read by each contestant, so that all see the same bytes. The
weights are a folder in the Hugging Face layout, which both transformers and ours read. Not here: any training loop.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Batch = dict[str, Tensor]

IGNORE = -100


@dataclass(frozen=True)
class Workload:
    """Sizes of model and batch, those of BERT-base, and settings of the optimizer. `folder` holds the files."""

    folder: Path
    vocab_size: int = 30522
    length: int = 128
    layers: int = 12
    width: int = 768
    heads: int = 12
    dropout: float = 0.1
    batch_size: int = 16
    steps: int = 10
    skip: int = 4
    """Steps left out of the timing at the start: compilation and first allocations."""
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_norm: float = 1.0
    masked_share: float = 0.15
    compile: bool = True
    """Whether the contestants that compile do so; toy runs in tests do not."""

    @property
    def weights(self) -> Path:
        """The folder of config and initial weights, in the Hugging Face layout."""
        return self.folder / "weights"

    @property
    def places(self) -> int:
        """The most hidden tokens of a row."""
        return max(1, round(self.length * self.masked_share))

    def save(self) -> None:
        """Write the settings into the folder."""
        (self.folder / "workload.json").write_text(json.dumps({**asdict(self), "folder": None}))

    @classmethod
    def load(cls, folder: str | Path) -> Workload:
        """Read the settings that `save` wrote."""
        settings = json.loads((Path(folder) / "workload.json").read_text())
        return cls(**{**settings, "betas": tuple(settings["betas"]), "folder": Path(folder)})

    def batches(self) -> list[Batch]:
        """Return the batches in training order: `input_ids`, `attention_mask`, `labels`, each (batch, length) int64.

        Labels are -100 but where a token is hidden; the attention mask is 0 at padding, which is on the right.
        """
        fields = load_file(self.folder / "batches.safetensors")
        starts = range(0, self.steps * self.batch_size, self.batch_size)
        names = ("input_ids", "attention_mask", "labels")
        return [{name: fields[name][start : start + self.batch_size] for name in names} for start in starts]

    def tokens(self) -> list[int]:
        """Return the tokens of each step that are no padding: what the figure counts."""
        return [int(batch["attention_mask"].sum()) for batch in self.batches()]


def by_places(batch: Batch, places: int) -> Batch:
    """Return the batch with its hidden tokens by their places: `masked_positions` and `labels` (batch, places).

    Raises SystemExit where a row hides more.
    """
    hidden = batch["labels"] != IGNORE
    if int(hidden.sum(1).max()) > places:
        raise SystemExit(f"a row hides {int(hidden.sum(1).max())} tokens, more than {places}")
    order = hidden.int().argsort(dim=1, descending=True, stable=True)[:, :places]
    labels = batch["labels"].gather(1, order)  # behind the last hidden one: -100, as it was
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return {**inputs, "masked_positions": order, "labels": labels.contiguous()}


def random_generator(seed: int) -> torch.Generator:
    """Return a generator of its own, so that no contestant's random numbers depend on it."""
    return torch.Generator().manual_seed(seed)
