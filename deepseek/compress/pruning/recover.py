"""Training after pruning, and the schedule of both in turn: prune a little, train a little, ..., train.

It is the normal trainer on the normal task; nothing here knows of pruning but the order of things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from deepseek.compress.pruning.config import PruneConfig
from deepseek.compress.pruning.prune import prune_model
from deepseek.compress.pruning.report import PruneReport
from deepseek.compress.pruning.tracing import Inputs
from deepseek.tasks.task import Batch, Task
from deepseek.train.result import TrainResult
from deepseek.train.trainer import Trainer

M = TypeVar("M", bound=nn.Module)


def recover(model: M, task: Task, train_dataset: Any, steps: int, **settings: Any) -> TrainResult:
    """Train a pruned model in place for `steps` steps and return the trainer's numbers; it is in eval mode then.

    `train_dataset` and `settings` are those of `deepseek.train.trainer.Trainer`. The model comes back on the device
    and in the modes of its gradients that it had. Raises what the trainer raises.
    """
    device = next(model.parameters()).device
    trainer = Trainer(model=model, train_dataset=train_dataset, task=task, max_steps=steps, **settings)
    result = trainer.train()
    model.to(device).eval()
    return result


def prune_and_recover(
    model: M,
    config: PruneConfig,
    task: Task,
    train_dataset: Any,
    *,
    steps: int,
    example_inputs: Inputs | None = None,
    batches: Sequence[Batch] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[M, PruneReport]:
    """Return a pruned and trained copy of `model`, and what was taken out.

    `config.iterative_steps` times a part is pruned, and after each the model trains for `steps` steps on
    `train_dataset` with the trainer's `settings`. The rest as for `prune_model` and `recover`.
    """
    chosen = dict(settings or {})

    def train(pruned: nn.Module, step: int) -> None:
        recover(pruned, task, train_dataset, steps, **chosen)

    small, report = prune_model(model, config, example_inputs, task, batches, between=train)
    recover(small, task, train_dataset, steps, **chosen)
    return small, report
