"""One contestant of `step_overhead` against a bare loop, in one process.

`python -m benchmarks.children.step_run NAME [TURNS] RESULT`.
The bare loop and the contestant take turns on the same weights and batches; the figure is the difference of their
seconds per step. Both are timed by `StepClock`, so that set-up before the first step does not count.
Not here: ours with special settings; it gets only what makes its maths the bare loop's.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.children.step_clock import StepClock

Batch = dict[str, Tensor]

STEPS, SKIP, TURNS = 2000, 100, 4
VOCABULARY, ROWS, TIME, WIDTH, HIDDEN = 64, 8, 32, 64, 256
LEARNING_RATE, MAX_NORM = 1e-3, 1.0


class MLP(nn.Module):
    """Two linear layers on top of a lookup: `forward(input_ids)` gives logits (rows, time, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.down(F.gelu(self.up(self.lookup(input_ids))))
        return logits


def batches(steps: int) -> list[Batch]:
    """Return seeded batches; half of the labels follow from their inputs, so that the loss falls but not to zero."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(VOCABULARY, (steps, ROWS, TIME), generator=generator)
    noise = torch.randint(VOCABULARY, inputs.shape, generator=generator)
    labels = torch.where(noise % 2 == 0, (inputs * 7 + 3) % VOCABULARY, noise)
    return [{"input_ids": ids, "labels": targets} for ids, targets in zip(inputs, labels, strict=True)]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return fused AdamW without decay."""
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def bare(model: nn.Module, data: list[Batch]) -> None:
    """The loop that everyone would write: forward, backward, clip, step."""
    optimizer = optimizer_of(model)
    for batch in data:
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def ours(model: nn.Module, data: list[Batch]) -> None:
    """`deepseek.Trainer`, fp32, eager."""
    from deepseek import Trainer

    trainer = Trainer(
        model=model,
        train_dataset=data,
        learning_rate=LEARNING_RATE,
        betas=[0.9, 0.95],
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        schedule="constant",
        warmup_steps=0,
        precision="fp32",
        compile=False,
        progress=False,
        tensorboard=False,
    )
    trainer.train(max_steps=len(data))


def lightning(model: nn.Module, data: list[Batch]) -> None:
    """Lightning's Trainer in its barebones mode, fp32."""
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batch, index: int) -> Tensor:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)

    loader: DataLoader[Batch] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_steps=len(data), max_epochs=-1, barebones=True)
    trainer.fit(Module(), loader)


def hf_trainer(model: nn.Module, data: list[Batch]) -> None:
    """HF Trainer, fp32, no logging; batches come ready-made, so that its collator costs nothing."""
    from transformers import Trainer, TrainingArguments

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, labels: Tensor) -> Batch:
            return {"loss": loss_of(self.model, {"input_ids": input_ids, "labels": labels})}

    with tempfile.TemporaryDirectory(prefix="bench-hf-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(data),
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=MAX_NORM,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
        )
        Trainer(WithLoss(), arguments, data_collator=lambda rows: rows[0], train_dataset=data).train()


CONTESTANTS: dict[str, Callable[[nn.Module, list[Batch]], None]] = {
    "bare-loop": bare,
    "ours": ours,
    "lightning": lightning,
    "hf-trainer": hf_trainer,
}


def run(name: str, steps: int = STEPS, skip: int = SKIP, turns: int = TURNS) -> dict[str, object]:
    """Let bare loop and contestant take turns; the value is the contestant's extra microseconds per step."""
    data = batches(steps)
    torch.manual_seed(0)
    start = MLP()
    seconds: dict[str, list[float]] = {"bare": [], "contestant": []}
    losses: dict[str, float] = {}
    for _ in range(turns):
        for side, train in (("bare", bare), ("contestant", CONTESTANTS[name])):
            model = copy.deepcopy(start)
            with StepClock() as clock:
                train(model, data)
            if len(clock.stamps) != steps:
                raise SystemExit(f"{name}: {side} made {len(clock.stamps)} steps; wanted {steps}")
            seconds[side].append(mean_step(clock.step_seconds()[skip:]))
            with torch.no_grad():
                losses[side] = float(loss_of(model, data[-1]))
    overheads = [(theirs - own) * 1e6 for own, theirs in zip(*seconds.values(), strict=True)]
    return {
        # Other processes only ever add time, so each side's quickest turn is the nearest to the truth.
        "value": (min(seconds["contestant"]) - min(seconds["bare"])) * 1e6,
        "outputs": {"final_loss": losses["contestant"], "bare_final_loss": losses["bare"]},
        "details": {
            "bare_us": min(seconds["bare"]) * 1e6,
            "contestant_us": min(seconds["contestant"]) * 1e6,
            "overhead_us_by_turn": overheads,
        },
    }


def mean_step(seconds: list[float]) -> float:
    """Return the mean without the slowest 1%, which are other processes' doing; what a loop does every few steps
    stays in."""
    kept = sorted(seconds)[: max(len(seconds) - len(seconds) // 100, 1)]
    return fmean(kept)


def main(argv: list[str]) -> None:
    """Run `NAME RESULT`, or `NAME TURNS RESULT`."""
    name, *turns, result = argv
    Path(result).write_text(json.dumps(run(name, turns=int(turns[0]) if turns else TURNS)))


if __name__ == "__main__":
    main(sys.argv[1:])
