"""`Trainer`: a model and data in, a trained model out. Text files are tokenized, packed and cached on the way.

Not here: the loop (`loop.py`) and its arithmetic (`step.py`).
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from deepseek.config import Config
from deepseek.data import Tokenizer
from deepseek.errors import ConfigError
from deepseek.hardware import resolve_device, use_physical_cores
from deepseek.models.factory import build, model_config
from deepseek.optim.deferred import DeferredOptimizer
from deepseek.optim.muon import MuonAdamW, decay_groups, hidden_matrices
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import Task, mean_loss
from deepseek.train.batches import BatchStream, as_stream
from deepseek.train.config import TrainConfig
from deepseek.train.loop import TrainingRun, take, train_loop
from deepseek.train.memory import estimate_training, refuse_if_too_large
from deepseek.train.output import hold_output, save_bundle, save_tokenizer, stored_tokenizer
from deepseek.train.result import TrainResult
from deepseek.train.step import TrainStep
from deepseek.train.text_data import TextData, TextSource, check_vocabulary, prepare_text, train_tokenizer

OptimizerLike = Optimizer | DeferredOptimizer | type[Optimizer] | None


class Trainer:
    """Trains `model`, or a new model of `model_config`, on `train_dataset`.

    `train_dataset` and `val_dataset`: a path to text (JSONL, text file, folder) for language models, a `data.Loader`, a
    list of batches, or any iterable of batches. `task` defaults to language modelling. `optimizer`: a name (adamw,
    muon), an optimizer, or its class; one that has a learning rate keeps it as the peak of the schedule. `settings` are
    the fields of TrainConfig (`deepseek explain train`). Files go to `output_dir`: by default `runs/<date-time>` when
    training from files, nowhere when training from batches in memory. There, besides checkpoints and metrics:
    `tokenizer.json` and, at the end, `bundle/`.

    Raises ConfigError for unknown or wrong settings.
    """

    def __init__(
        self,
        model_config: Config | dict[str, Any] | str | None = None,
        train_dataset: Any = None,
        val_dataset: Any = None,
        batch_size: int = 8,
        learning_rate: float = 3e-4,
        *,
        model: nn.Module | None = None,
        task: Task | None = None,
        optimizer: OptimizerLike | str = None,
        tokenizer: Tokenizer | None = None,
        output_dir: str | Path | None = None,
        precision_override: Precision | None = None,
        scaler: torch.amp.GradScaler | None = None,
        **settings: Any,
    ) -> None:
        if (model_config is None) == (model is None):
            raise ConfigError(
                "Trainer needs one model",
                found="neither" if model is None else "both",
                wanted="model_config or model",
            )
        if train_dataset is None:
            raise ConfigError("Trainer needs data", wanted="train_dataset: a path, a Loader or batches")
        if isinstance(optimizer, str):
            settings["optimizer"], optimizer = optimizer, None
        self.config = TrainConfig(batch_size=batch_size, learning_rate=learning_rate, **settings)
        self.model_config = _config_of(model_config) if model_config is not None else None
        self.model = model
        self.task: Task = task or LanguageModeling()
        self.tokenizer = tokenizer
        self.text: TextData | None = None
        self.result: TrainResult | None = None
        self.output_dir = Path(output_dir) if output_dir is not None else None
        if self.output_dir is None and isinstance(train_dataset, str | Path):
            self.output_dir = _new_folder(Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
        self._train, self._val = train_dataset, val_dataset
        self._optimizer = optimizer
        self._scaler = scaler
        self._precision = precision_override

    def train(self, epochs: int | None = None, max_steps: int | None = None, *, resume: bool = False) -> TrainResult:
        """Train and return the numbers; `model` is then the trained model.

        `epochs` and `max_steps` override the settings. With `resume`, go on from the newest good checkpoint.
        Raises MemoryEstimateError before anything is allocated when the run can't fit, RunLockedError when another
        process writes to the output folder, ConfigError when an earlier run is there, CheckpointError when there is
        nothing to resume.
        """
        with hold_output(self.output_dir, resume=resume):
            return self._train_held(epochs, max_steps, resume)

    def _train_held(self, epochs: int | None, max_steps: int | None, resume: bool) -> TrainResult:
        changes = {name: value for name, value in (("epochs", epochs), ("max_steps", max_steps)) if value is not None}
        config = self.config.replace(**changes) if changes else self.config
        device = self._precision.device if self._precision else resolve_device(config.device)
        use_physical_cores()
        precision = self._precision or Precision(config.precision, device)
        if resume and self.output_dir is not None:
            self.tokenizer = stored_tokenizer(self.output_dir, self.tokenizer)
        data, validation = self._batches(config)
        self._build_model(config, precision, data)
        save_tokenizer(self.output_dir, self.tokenizer)
        model = self._require_model().to(device).train()
        step = TrainStep(
            model,
            self.task,
            self._make_optimizer(model, config),
            precision,
            max_grad_norm=config.max_grad_norm,
            scaler=self._scaler or precision.scaler(),
        )
        run = TrainingRun(
            step,
            data,
            config,
            validate=self._validator(model, validation, precision, config),
            output_dir=self.output_dir,
            resume=resume,
            unit="tokens" if isinstance(self.task, LanguageModeling) else "items",
        )
        self.result = train_loop(run)
        model.eval()
        if self.output_dir is not None and not self.result.interrupted:
            save_bundle(self.output_dir, model, self.tokenizer, self.task.name)
        return self.result

    def _require_model(self) -> nn.Module:
        if self.model is None:
            raise ConfigError("the model is not built yet", fix="call train() first")
        return self.model

    def _batches(self, config: TrainConfig) -> tuple[BatchStream, BatchStream | None]:
        if not isinstance(self._train, str | Path):
            validation = as_stream(self._val, config.seed) if self._val is not None else None
            return as_stream(self._train, config.seed), validation
        shape: Any = self.model_config or getattr(self.model, "config", None)
        if not hasattr(shape, "vocab_size") or not hasattr(shape, "max_length"):
            raise ConfigError(
                "training from text files needs a language model",
                found=type(self.model or self.model_config).__name__,
                wanted="a model whose config has vocab_size and max_length",
                fix="pass batches as train_dataset, and a task",
            )
        if self.tokenizer is None:
            self.tokenizer = train_tokenizer(
                self._train, shape.vocab_size, on_error=config.on_error, allow_smaller=True
            )
        check_vocabulary(self.tokenizer, shape.vocab_size)
        source = TextSource(
            self._train,
            self._val,
            shape.max_length,
            config.batch_size,
            config.seed,
            config.val_fraction,
            config.isolate_documents,
            config.on_error,
        )
        self.text = prepare_text(source, self.tokenizer)
        return self.text.train, self.text.val

    def _build_model(self, config: TrainConfig, precision: Precision, data: BatchStream) -> None:
        if self.model is not None or self.model_config is None:
            return
        model_config = self.model_config
        batch = next(data.iterate(0))
        estimate = estimate_training(lambda: build(model_config), self.task, batch)
        refuse_if_too_large(estimate, precision.device, precision.dtype is not None)
        torch.manual_seed(config.seed)
        self.model = build(model_config)

    def _make_optimizer(self, model: nn.Module, config: TrainConfig) -> Optimizer:
        if isinstance(self._optimizer, Optimizer):
            held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
            if not held <= {id(p) for p in model.parameters()}:
                raise ConfigError(
                    "the optimizer holds parameters of another model",
                    fix="make it from the parameters of the model given to the trainer, or without any: AdamW(lr=5e-4)",
                )
            return self._optimizer
        if self._optimizer is None:
            return default_optimizer(model, config)
        deferred = self._optimizer
        if not isinstance(deferred, DeferredOptimizer):
            deferred = DeferredOptimizer(deferred, {})
        settings = {"lr": config.learning_rate, **deferred.settings}
        return deferred.optimizer_class([p for p in model.parameters() if p.requires_grad], **settings)

    def _validator(
        self, model: nn.Module, validation: BatchStream | None, precision: Precision, config: TrainConfig
    ) -> Any:
        if validation is None:
            return None

        def validate() -> float:
            with precision.autocast():
                return mean_loss(model, take(validation, config.max_val_batches), self.task, precision.device)

        return validate


def default_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return what `config.optimizer` names; matrices decay, vectors (biases, norms) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.betas[0], config.betas[1])}
    if config.optimizer == "muon":
        matrices = hidden_matrices(model)
        inside = {id(p) for p in matrices}
        others = [p for p in trained if id(p) not in inside]
        return MuonAdamW(matrices, others, weight_decay=config.weight_decay, **settings)
    return torch.optim.AdamW(decay_groups(trained, config.weight_decay), fused=True, **settings)


def _new_folder(path: Path) -> Path:
    """Return `path`, or `path-2` and so on where it is taken."""
    names = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _config_of(values: Config | dict[str, Any] | str) -> Config:
    return values if isinstance(values, Config) else model_config(values)[1]
