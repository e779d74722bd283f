"""What the train stages of all kinds of runs share: the recipe's settings, and the numbers of the whole training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.road.recipe import Recipe
from deepseek.road.run_folder import RunFolder
from deepseek.train.result import TrainResult
from deepseek.train.trainer import Trainer


def given_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the train section that the recipe names."""
    return {name: getattr(recipe.train, name) for name in recipe.train.model_fields_set}


def record_training(run: RunFolder, trainer: Trainer, result: TrainResult, unit: str = "tokens") -> None:
    """Record the model, and the numbers of the whole training in `unit`: a resumed run's metrics go on counting, its
    result begins anew."""
    model = trainer.model
    if model is None:
        raise ConfigError("the trainer has no model")
    config: Any = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run.record("model", {"name": type(model).__name__, "parameters": parameters, "config": config.to_dict()})
    logged = run.last_metrics("loss")
    items = max(result.items, int(logged.get("tokens") or logged.get("items") or 0))
    seconds = max(result.seconds, float(logged.get("seconds") or 0.0))
    run.record(
        "train",
        {
            "steps": result.steps,
            unit: items,
            "seconds": seconds,
            f"{unit}_per_second": items / seconds if seconds else 0.0,
            "train_loss": float(np.mean(result.losses[-20:])) if result.losses else logged.get("loss"),
            "val_loss": result.val_loss,
            "precision": result.precision,
            "compiled": result.compiled,
            "compile_reason": result.compile_reason,
            "compile_seconds": result.compile_seconds,
            "device": result.device,
            "interrupted": result.interrupted,
            "signal": result.signal,
            "stop_reason": result.stop_reason,
            "memory_plan": result.memory_plan,
        },
    )


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    device: torch.device = next(iter(model.state_dict().values())).device
    return device
