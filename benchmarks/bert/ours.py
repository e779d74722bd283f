"""Ours in `train_bert`: `deepseek.Trainer` on the same weights and batches, hidden tokens given by their places.

The places are what `deepseek.data` makes when it hides tokens; they let the output layer see the hidden tokens alone.
Not here: any help that a user of `deepseek.Trainer` would not have.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.bert.workload import Workload, by_places


def train(workload: Workload) -> list[float]:
    """Train with the defaults of this machine, compiled as the peers are."""
    return _train(workload, compile=workload.compile)


def train_eager_fp32(workload: Workload) -> list[float]:
    """Train in float32 without compiling."""
    return _train(workload, compile=False, precision="fp32")


def our_model(workload: Workload) -> nn.Module:
    """Return our BERT with the workload's weights."""
    from deepseek.models.bert import BERT

    return BERT.from_pretrained(workload.weights, head="masked_lm")


def _train(workload: Workload, **settings: Any) -> list[float]:
    from deepseek import Trainer
    from deepseek.tasks.masked_lm import MaskedLanguageModeling

    trainer = Trainer(
        model=our_model(workload),
        train_dataset=[by_places(batch, workload.places) for batch in workload.batches()],
        task=MaskedLanguageModeling(),
        batch_size=workload.batch_size,
        learning_rate=workload.learning_rate,
        betas=list(workload.betas),
        weight_decay=workload.weight_decay,
        max_grad_norm=workload.max_norm,
        schedule="constant",
        warmup_steps=0,
        progress=False,
        tensorboard=False,
        **settings,
    )
    return [float(loss) for loss in trainer.train(max_steps=workload.steps).losses]
