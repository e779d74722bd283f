"""`deepseek.Trainer` as a life of `kill_anywhere`: checkpoints in the background, resume from the newest good one."""

from __future__ import annotations

from typing import Any

import deepseek.train.trainer  # noqa: F401  # loaded before the fork
from benchmarks.children.kill_case import LEARNING_RATE, MAX_NORM, ROWS, Case, make_net, samples
from deepseek.callbacks import Callback
from deepseek.checkpoint.store import list_checkpoints
from deepseek.data import Loader
from deepseek.train import Trainer


class Samples:
    """What a Loader reads."""

    def __init__(self, time: int) -> None:
        self._fields = {name: values.numpy() for name, values in samples(time).items()}

    def __len__(self) -> int:
        return len(self._fields["labels"])

    def get_batch(self, epoch: int, indices: Any) -> dict[str, Any]:
        """Return the samples of these indices."""
        return {name: values[indices] for name, values in self._fields.items()}


class Steps(Callback):
    """Notes each step."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def on_step_end(self, state: Any) -> None:
        """Note it."""
        self._case.step_done(state.step)


def live(options: dict[str, Any]) -> None:
    """Begin the run or go on with it."""
    case = Case.of(options)
    model = make_net(case.width)
    trainer = Trainer(
        model=model,
        train_dataset=Loader(Samples(case.time), ROWS, seed=0),
        output_dir=case.folder,
        callbacks=[Steps(case)],
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        schedule="constant",
        warmup_steps=0,
        max_steps=case.steps,
        checkpoint_every=case.every,
        keep_checkpoints=2,
        precision="fp32",
        compile=False,
        progress=False,
        tensorboard=False,
    )
    trainer.train(resume=bool(list_checkpoints(case.folder / "checkpoints")))
    case.finished(model)


def newest(case: Case) -> Any:
    """Return the folder that an operator would remove so that the run goes on from the checkpoint before."""
    return next(iter(list_checkpoints(case.folder / "checkpoints")), None)
