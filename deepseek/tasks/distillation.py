"""Distillation: a small model learns from a larger one's answers as well as from the data, on the normal training loop.

Loss of a batch, for each item that the task counts: `0.7 T^2 KL(teacher || student) + 0.3 task loss`, with both answers
softened by the temperature T. Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531. Answers that are no classes (boxes, values, noise) are compared by squared error instead.
Not here: making the student (`deepseek.compress.pruning`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError, ModelError
from deepseek.nn.losses import IGNORE
from deepseek.tasks.inputs import call_model
from deepseek.tasks.task import Evaluator, Loss, Task, evaluator_of

_CLASS_DIMENSIONS = {
    "classification": -1,
    "image_classification": -1,
    "language_modeling": -1,
    "masked_lm": -1,
    "segmentation": 1,
    "seq2seq": -1,
}
"""Where the classes are in the answers of each task that has them."""

Call = tuple[tuple[Any, ...], dict[str, Any], Any]


class Distillation:
    """A task with a teacher. Measures and predicts as the task itself; only the loss of training differs.

    `soft_share` is the part of the teacher's answers in the loss, the task has the rest. Raises ConfigError for a share
    outside 0 to 1 or a temperature that is not above zero.
    """

    def __init__(self, task: Task, teacher: nn.Module, soft_share: float = 0.7, temperature: float = 2.0) -> None:
        if not 0 <= soft_share <= 1:
            raise ConfigError("soft_share is a share", found=soft_share, wanted="0 to 1")
        if not temperature > 0:
            raise ConfigError("the temperature is too low", found=temperature, wanted="more than 0")
        self.name = task.name
        self.task, self.teacher = task, teacher.eval()
        self.soft_share, self.temperature = soft_share, temperature

    def count(self, batch: Any) -> int:
        """Return the number of items, as the task counts them."""
        return self.task.count(batch)

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Return the summed loss and the number of items. Raises ModelError where the two answers do not fit."""
        return Loss(self.loss_sum(model, batch), self.count(batch))

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the summed loss alone. In eval mode it is the task's own: a validation measures the task."""
        if not model.training:
            return self.task.loss_sum(model, batch)
        with _calls_of(model) as calls:
            hard = self.task.loss_sum(model, batch)
        if calls:
            args, kwargs, answer = calls[0]
        else:  # the task works on features, and no logits were made
            args, kwargs = (), _inputs(batch)
            answer = call_model(model, kwargs)
        with torch.no_grad():
            taught = self.teacher(*args, **kwargs) if calls else call_model(self.teacher, kwargs)
        soft = self._soft(answer, taught, batch) * self.task.count(batch)
        return self.soft_share * soft + (1 - self.soft_share) * hard

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the task's metrics of a mean loss."""
        return self.task.metrics(mean_loss)

    def evaluator(self) -> Evaluator:
        """Return the task's own evaluator."""
        return evaluator_of(self.task)

    def predict(self, model: nn.Module, inputs: Any) -> Any:
        """Return the model's answer, as the task gives it."""
        return self.task.predict(model, inputs)

    def _soft(self, answer: Any, taught: Any, batch: Any) -> Tensor:
        """Return the mean difference of the two answers, for one item."""
        dimension = _CLASS_DIMENSIONS.get(self.name)
        if dimension is not None:
            labels = batch.get("labels") if isinstance(batch, Mapping) else None
            student, teacher = _first(answer), _first(taught)
            _check_shapes(student, teacher)
            return softened_divergence(student, teacher, self.temperature, labels, dimension)
        pairs = [pair for pair in zip(_floats(answer), _floats(taught), strict=False)]
        if not pairs:
            raise ModelError("the teacher's answer has no numbers to learn from", found=type(taught).__name__)
        for student, teacher in pairs:
            _check_shapes(student, teacher)
        errors = [F.mse_loss(s.float(), t.float()) / t.float().square().mean().clamp_min(1e-12) for s, t in pairs]
        return torch.stack(errors).mean()


def softened_divergence(
    student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None, dimension: int = -1
) -> Tensor:
    """Return `T^2 KL(softmax(teacher / T) || softmax(student / T))` in nats, averaged over the items; float32 scalar.

    The logits (..., classes) have their classes in `dimension`; one class alone is a yes-or-no question. Items whose
    integer label is -100 do not count.
    """
    student, teacher = student.float().movedim(dimension, -1), teacher.float().movedim(dimension, -1)
    if student.shape[-1] == 1:
        student, teacher = (torch.cat([torch.zeros_like(one), one], -1) for one in (student, teacher))
    log_p, log_q = ((one / temperature).log_softmax(-1) for one in (teacher, student))
    each = (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
    if labels is None or labels.is_floating_point() or labels.shape != each.shape:
        return each.mean()
    known = labels != IGNORE
    return torch.where(known, each, 0).sum() / known.sum().clamp_min(1)


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[list[Call]]:
    """Collect what the model is called with inside, and what it answers."""
    calls: list[Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key not in ("labels", "masked_positions")}


def _first(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer
    logits = getattr(answer, "logits", None)
    return logits if isinstance(logits, Tensor) else _floats(answer)[0]


def _floats(answer: Any) -> list[Tensor]:
    if isinstance(answer, Tensor):
        return [answer] if answer.is_floating_point() else []
    parts = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, tuple | list) else ()
    return [tensor for part in parts for tensor in _floats(part)]


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ModelError(
            "teacher and student do not answer alike", found=tuple(student.shape), wanted=tuple(teacher.shape)
        )
