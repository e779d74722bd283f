"""`Trainer`: a model and data in, a trained model out. Text files are tokenized, packed and cached on the way.

Not here: the loop (`loop.py`) and its arithmetic (`step.py`).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
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
from deepseek.optim.build import build_optimizer, use_fp32_weights
from deepseek.optim.clipping import Clipper, make_clipper
from deepseek.optim.deferred import DeferredOptimizer
from deepseek.optim.fp32_modules import keep_fp32
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.task import Task, evaluate
from deepseek.train.batches import BatchStream, as_stream
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.early_stopping import EarlyStopping
from deepseek.train.callbacks.ema import EMA
from deepseek.train.config import TrainConfig
from deepseek.train.fp32_modules import fp32_modules
from deepseek.train.loop import take, train_loop
from deepseek.train.memory.allocator import HOLES, give_large_blocks_back, trim
from deepseek.train.memory.estimate import estimate_training, refuse_if_too_large
from deepseek.train.memory.plan import MemoryPlan, plan_memory
from deepseek.train.memory.recovery import MicroBatchSplitter
from deepseek.train.output import hold_output, save_bundle, save_tokenizer, stored_tokenizer
from deepseek.train.recompute import recomputing
from deepseek.train.result import TrainResult
from deepseek.train.run import TrainingRun
from deepseek.train.step import TrainStep
from deepseek.train.step_source import step_source
from deepseek.train.text_data import TextData, TextSource, check_vocabulary, prepare_text, train_tokenizer

logger = logging.getLogger("deepseek.train")

OptimizerLike = Optimizer | DeferredOptimizer | type[Optimizer] | None


class Trainer:
    """Trains `model`, or a new model of `model_config`, on `train_dataset`.

    `train_dataset` and `val_dataset`: a path to text (JSONL, text file, folder) for language models, a `data.Loader`, a
    list of batches, or any iterable of batches. `task` defaults to language modelling. `optimizer`: a name (adamw,
    muon), an optimizer, or its class; one that has a learning rate keeps it as the peak of the schedule. `settings` are
    the fields of TrainConfig (`deepseek explain train`); `callbacks` (`deepseek.callbacks`) come after those that
    settings ask for (ema_decay, early_stopping). Files go to `output_dir`: by default `runs/<date-time>` when
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
        callbacks: Sequence[Callback] = (),
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
        self.memory_plan: MemoryPlan | None = None
        self.output_dir = Path(output_dir) if output_dir is not None else None
        if self.output_dir is None and isinstance(train_dataset, str | Path):
            self.output_dir = _new_folder(Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
        self._train, self._val = train_dataset, val_dataset
        self._optimizer = optimizer
        self._gives_memory_back = False
        self._callbacks = [*usual_callbacks(self.config), *callbacks]
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
        precision.check_weights(config.weights_dtype)
        if resume and self.output_dir is not None:
            self.tokenizer = stored_tokenizer(self.output_dir, self.tokenizer)
        data, validation = self._batches(config)
        config, task, splitter = self._fit_memory(config, precision, data, resume)
        self._build_model(config)
        save_tokenizer(self.output_dir, self.tokenizer)
        model = self._require_model().to(device).train()
        for left in precision.prepare(model):
            logger.info("%s stays bf16: %s", left.name, left.reason)
        kept = keep_fp32(model, fp32_modules(model, task, data, precision, config, self.output_dir))
        step = TrainStep(
            model,
            task,
            self._make_optimizer(model, config),
            precision,
            clipper=_clipper(config, model),
            scaler=self._scaler or precision.scaler(config.loss_scale),
            splitter=splitter,
        )
        if self._gives_memory_back:
            step.optimizer.register_step_post_hook(trim)
        run = TrainingRun(
            step,
            data,
            step_source(data, task, config),
            config,
            validate=self._validator(model, validation, precision, config),
            output_dir=self.output_dir,
            resume=resume,
            unit="tokens" if isinstance(self.task, LanguageModeling) else "items",
            callbacks=self._callbacks,
        )
        with recomputing(model, config.recompute):
            self.result = train_loop(run)
        self.result.memory_plan = self.memory_plan.table() if self.memory_plan is not None else None
        kept.remove()
        precision.restore(model)
        use_fp32_weights(model)
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

    def _fit_memory(
        self, config: TrainConfig, precision: Precision, data: BatchStream, resume: bool
    ) -> tuple[TrainConfig, Task, MicroBatchSplitter]:
        """Return settings, task and cutting of micro-batches that fit in memory: those asked for, or planned ones.

        Nothing is allocated. Raises MemoryEstimateError where they don't fit.
        """
        made, model_config = self.model, self.model_config
        if self.output_dir is None:
            config = config.replace(async_checkpoints=False)  # nothing is written, so nothing is copied
        if config.memory_budget is None and (made is not None or resume):
            return config, self.task, MicroBatchSplitter()  # what fails is split when it does

        def make() -> nn.Module:
            return made if made is not None else build(_given(model_config))

        batch = next(data.iterate(0))
        if config.memory_budget is None:
            refuse_if_too_large(estimate_training(make, self.task, batch, config, precision), precision.device)
            return config, self.task, MicroBatchSplitter()
        self.memory_plan = plan_memory(make, self.task, batch, config, precision.device)
        logger.info("%s", self.memory_plan.table())
        plan = self.memory_plan
        if precision.device.type == "cpu" and plan.estimate.total * HOLES > plan.budget:
            self._gives_memory_back = give_large_blocks_back()
        return plan.settings(config), plan.task(self.task), MicroBatchSplitter(plan.chosen.parts)

    def _build_model(self, config: TrainConfig) -> None:
        if self.model is None:
            torch.manual_seed(config.seed)
            self.model = build(_given(self.model_config))

    def _make_optimizer(self, model: nn.Module, config: TrainConfig) -> Optimizer:
        if self._optimizer is not None:
            for name in ("layer_decay", "optimizer_bits", "offload_optimizer", "weights_dtype"):
                if getattr(config, name) != TrainConfig.model_fields[name].default:
                    logger.warning("%s has no effect: the optimizer was given ready-made", name)
        if isinstance(self._optimizer, Optimizer):
            held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
            if not held <= {id(p) for p in model.parameters()}:
                raise ConfigError(
                    "the optimizer holds parameters of another model",
                    fix="make it from the parameters of the model given to the trainer, or without any: AdamW(lr=5e-4)",
                )
            return self._optimizer
        if self._optimizer is None:
            return build_optimizer(model, config)
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

        def validate() -> dict[str, float]:
            batches = take(validation, config.max_val_batches)
            return evaluate(model, batches, self.task, precision.device, precision.autocast)

        return validate


def usual_callbacks(config: TrainConfig) -> list[Callback]:
    """Return the callbacks that settings ask for."""
    callbacks: list[Callback] = []
    if config.ema_decay is not None:
        callbacks.append(EMA(config.ema_decay))
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(**config.early_stopping.to_dict()))
    return callbacks


def _clipper(config: TrainConfig, model: nn.Module) -> Clipper:
    if config.clipping == "quantile":
        return make_clipper({"kind": "quantile", "quantile": config.clip_quantile})
    if config.clipping == "adaptive":
        return make_clipper({"kind": "adaptive", "factor": config.clip_factor}, model)
    return make_clipper(config.max_grad_norm)


def _new_folder(path: Path) -> Path:
    """Return `path`, or `path-2` and so on where it is taken."""
    names = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _given(config: Config | None) -> Config:
    if config is None:
        raise ConfigError("Trainer needs one model", found="neither", wanted="model_config or model")
    return config


def _config_of(values: Config | dict[str, Any] | str) -> Config:
    return values if isinstance(values, Config) else model_config(values)[1]
