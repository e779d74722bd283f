"""Lightning as a life of `kill_anywhere`: ModelCheckpoint keeps the last two, `ckpt_path` is the newest.

What Lightning does not restore by itself is given to it: the loader keeps its position (its protocol for loaders with
`state_dict`), and the random states are in the checkpoint. Without these two every resume ends with other weights.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.children.kill_case import BATCHES, LEARNING_RATE, MAX_NORM, ROWS, Case, loss_of, make_net, samples

Batch = dict[str, Tensor]


class Positioned:
    """Shuffled batches that know where in which epoch they are."""

    def __init__(self, time: int) -> None:
        self._data = samples(time)
        self._position = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Batch]:
        while True:
            epoch, index = divmod(self._position, BATCHES)
            order = torch.randperm(ROWS * BATCHES, generator=torch.Generator().manual_seed(epoch))
            chosen = order[index * ROWS : (index + 1) * ROWS]
            self._position += 1
            yield {name: values[chosen] for name, values in self._data.items()}
            if self._position % BATCHES == 0:
                return

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position."""
        self._position = state["position"]


class Module(pl.LightningModule):
    """The network, its optimizer, and the random states."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = make_net(case.width)
        self._case = case
        self._random: dict[str, Any] | None = None

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss."""
        return loss_of(self.model, **batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return fused AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip by hand: Lightning refuses to with a fused optimizer."""
        nn.utils.clip_grad_norm_(self.parameters(), MAX_NORM)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random states."""
        checkpoint["random"] = {"torch": torch.get_rng_state(), "python": random.getstate()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training begins."""
        self._random = checkpoint["random"]

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the random states, once."""
        if self._random is not None:
            torch.set_rng_state(self._random["torch"])
            random.setstate(self._random["python"])
            self._random = None

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        """Note the step."""
        self._case.step_done(self.trainer.global_step)


def live(options: dict[str, Any]) -> None:
    """Begin the run or go on with it."""
    case = Case.of(options)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    np.random.seed(0)
    module = Module(case)
    checkpoint = ModelCheckpoint(
        case.folder,
        monitor="step",
        mode="max",
        save_top_k=2,
        every_n_train_steps=case.every,
        save_on_train_epoch_end=False,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=case.steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoint],
    )
    loader: DataLoader[Batch] = Positioned(case.time)  # type: ignore[assignment]
    trainer.fit(module, loader, ckpt_path=newest(case))
    case.finished(module.model)


def newest(case: Case) -> str | None:
    """Return the checkpoint of the highest step."""
    found = sorted(
        Path(case.folder).glob("*.ckpt"), key=lambda path: int(path.stem.partition("step=")[2].split("-")[0])
    )
    return str(found[-1]) if found else None
