"""HF Trainer as a life of `kill_anywhere`: resume from its own last checkpoint, two kept, order of data restored."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.children.kill_case import LEARNING_RATE, MAX_NORM, ROWS, Case, loss_of, make_net, rows


class WithLoss(nn.Module):
    """The network with the loss inside, as HF Trainer wants it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = make_net(width)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": loss_of(self.model, input_ids, labels)}


class Steps(TrainerCallback):
    """Notes each step."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note it."""
        self._case.step_done(state.global_step)


def live(options: dict[str, Any]) -> None:
    """Begin the run or go on with it."""
    case = Case.of(options)
    model = WithLoss(case.width)
    arguments = TrainingArguments(
        output_dir=str(case.folder),
        max_steps=case.steps,
        per_device_train_batch_size=ROWS,
        dataloader_drop_last=True,
        learning_rate=LEARNING_RATE,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="steps",
        save_steps=case.every,
        save_total_limit=2,
        seed=0,
        data_seed=0,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows(case.time), callbacks=[Steps(case)])
    trainer.train(resume_from_checkpoint=newest(case))
    case.finished(model.model)


def newest(case: Case) -> str | None:
    """Return the checkpoint that HF's own search takes for the last one."""
    found: str | None = None
    if case.folder.is_dir():
        found = get_last_checkpoint(str(case.folder))  # type: ignore[no-untyped-call]
    return found
