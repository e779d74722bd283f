"""Short trainings that a compressed model needs: recovery after pruning with the original as teacher, and int8 learned.

Both are the normal `Trainer` on the run's own training data. Not here: the distillation loss
(`deepseek.tasks.distillation`), what learned int8 layers are (`deepseek.quantization.qat`).
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from deepseek.errors import ConfigError
from deepseek.quantization.qat import convert_qat, prepare_qat
from deepseek.quantization.report import QuantReport, tensor_bytes
from deepseek.tasks.distillation import Distillation
from deepseek.tasks.task import Task
from deepseek.train.trainer import Trainer

if TYPE_CHECKING:
    from deepseek.compress.config import CompressConfig

_LEARNING_RATE = 1e-4  # a third of what the trainer takes where nothing else is known of the model


def distilled(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    train_data: Any,
    config: CompressConfig,
    seconds: float | None = None,
) -> nn.Module:
    """Return `student` after a short training on `train_data` with `teacher`, in place; both are on the CPU.

    At most `config.training_steps` steps and, where given, about `seconds`. Raises ConfigError without data, and what
    training raises.
    """
    return _trained(student, Distillation(task, copy.deepcopy(teacher)), train_data, config, seconds)


def learned_int8(
    model: nn.Module,
    task: Task,
    train_data: Any,
    calibration: Iterable[Any],
    config: CompressConfig,
    seconds: float | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Return an int8 copy of `model` whose weights and ranges a short training learned, and a report without layers.

    The model itself is the teacher. Raises ConfigError without training data.
    """
    quant = config.replace(method="qat").quant_config()
    data = list(itertools.islice(calibration, config.calibration_batches))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        prepared = prepare_qat(
            model, quant, calibration_data=data, freeze_norms_after=max(1, config.training_steps // 2)
        )
    trained = _trained(prepared, Distillation(task, copy.deepcopy(model)), train_data, config, seconds)
    result = convert_qat(trained)
    return result, QuantReport(tensor_bytes(model), tensor_bytes(result), (), {})


def _trained(model: nn.Module, task: Task, train_data: Any, config: CompressConfig, seconds: float | None) -> nn.Module:
    if train_data is None:
        raise ConfigError(
            "there are no training data to learn from",
            wanted="the data of the run that the bundle is in",
            fix="compress a run folder without --data, or choose a method that needs no training (static, mixed)",
        )
    trainer = Trainer(
        model=model,
        train_dataset=train_data,
        task=task,
        learning_rate=config.learning_rate or _LEARNING_RATE,
        max_steps=config.training_steps,
        time_budget=seconds,
        compile=False,
        prefetch=False,
        tensorboard=False,
        progress=False,
        device="cpu",
        precision="fp32",
    )
    trainer.train()
    return model.eval()
