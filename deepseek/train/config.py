"""The settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from deepseek.config import Config
from deepseek.errors import ConfigError
from deepseek.optim.precision import PrecisionName
from deepseek.optim.schedules import DecayShape, ScheduleName
from deepseek.train.memory.size import check_budget


class EarlyStoppingConfig(Config):
    """When a run ends before its plan."""

    monitor: str = "val_loss"
    """The number watched: val_loss, or what the task measures (val_accuracy, val_map, val_cer, ...)."""
    patience: int = Field(default=3, ge=1)
    """Validations without an improvement before the run ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """Least change that counts as an improvement."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; auto goes by the number's name."""
    restore_best: bool = False
    """Put the weights of the best validation into the trained model."""


class TrainConfig(Config):
    """How a model is trained. Defaults pick what is fastest on this machine."""

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the data; null with max_steps or time_budget null is 1."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, over all epochs."""
    time_budget: float | None = Field(default=None, gt=0)
    """Seconds of training to aim for: the number of steps is set from the measured time of the first ones."""
    batch_size: int = Field(default=8, ge=1, le=1 << 20)
    """Sequences (samples) in a micro-batch."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1 << 16)
    """Micro-batches in an optimizer step; the update equals that of one large batch."""
    tokens_per_step: int | None = Field(default=None, ge=1)
    """In place of gradient_accumulation_steps: take micro-batches until a step has this many targets (tokens)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside the model: it needs far fewer tokens on short runs, at a dearer step."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls after the warm-up."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """With schedule wsd: the share of all steps in which the rate falls."""
    decay_shape: DecayShape = "linear"
    """With schedule wsd: how it falls, in a line or as one minus a square root."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of warm-up; null is 2% of all steps, at least 10 where there are 100 (one_cycle: 30%)."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Each layer's rate is this share of the one above it, for fine-tuning (0.75 to 0.95); null is one rate for all."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; vectors (biases, norms) have none."""
    betas: list[float] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """AdamW's decay rates of the first and second moment."""
    optimizer_bits: Literal[8, 16, 32] = 32
    """Bits of AdamW's two moments; 8 takes a quarter of their memory."""
    offload_optimizer: bool = False
    """Keep the optimizer's states in the CPU's memory and update there, when training on a GPU."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null leaves them."""
    clipping: Literal["norm", "quantile", "adaptive"] = "norm"
    """How gradients are limited: to max_grad_norm, to a running quantile of their norm, or unit by unit (AGC)."""
    clip_quantile: float = Field(default=0.9, gt=0, le=1)
    """With clipping quantile: which quantile of the latest norms is the limit."""
    clip_factor: float = Field(default=0.01, gt=0)
    """With clipping adaptive: a unit's gradient is at most this share of the norm of its weights."""
    precision: PrecisionName = "auto"
    """Number format of matrix products: auto is bf16 where the hardware has it, else fp32."""
    loss_scale: float | None = Field(default=None, gt=0, lt=2**32)
    """Fixed loss scale; null is a dynamic one (from 65536, factor 2) with fp16, none otherwise."""
    weights_dtype: Literal["fp32", "bf16"] = "fp32"
    """Format the weights are kept in; bf16 takes half the memory and rounds updates stochastically."""
    fp32_modules: Literal["auto"] | list[str] = []
    """Modules that compute in float32 all the same, by path; auto finds them on the first batch and lists them."""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """Keep an average of the weights with this decay (0.999): it is validated and becomes the trained model."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping: nothing, what is cheap, or whole blocks."""
    memory_budget: str | float | None = None
    """Memory the run may take: `8GB`, or a share of what is free (0.6). Recompute, micro-batch, loss chunks follow."""

    @field_validator("memory_budget")
    @classmethod
    def _is_a_budget(cls, value: str | float | None) -> str | float | None:
        try:
            check_budget(value)
        except ConfigError as error:  # pydantic says where it stands
            raise ValueError(f"{error.problem}; wanted: {error.wanted}") from None
        return value

    on_nonfinite: Literal["stop", "roll_back"] = "stop"
    """When the loss stays NaN or infinite: stop, or go back to the newest checkpoint and skip the batches."""
    early_stopping: EarlyStoppingConfig | None = None
    """End the run when validation no longer improves."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile: auto decides by the measured step time whether it will pay for itself."""
    prefetch: Literal["auto"] | bool = "auto"
    """Prepare the next batches in a thread; auto measures whether that pays."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of weights, data order and dropout; the random numbers of Python, numpy and torch are seeded with it."""
    isolate_documents: bool = False
    """Keep attention and loss inside a document when several share a sequence."""
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the documents held back for validation where no validation data is given."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations; null is ten times a run."""
    max_val_batches: int | None = Field(default=64, ge=1)
    """Most batches of a validation; null is all."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null is five times a run."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints kept besides, the best by `monitor`."""
    keep_every: int | None = Field(default=None, ge=1)
    """Keep each checkpoint of a step that this divides, for ever."""
    monitor: str = "val_loss"
    """The number that says which checkpoint is best."""
    monitor_mode: Literal["min", "max"] = "min"
    """Whether less or more of it is better."""
    async_checkpoints: bool = True
    """Write checkpoints in the background; training waits only while the state is copied."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines in metrics.jsonl."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do at a corrupt record in the data."""
    tensorboard: bool = True
    """Write TensorBoard events too, where tensorboard is installed."""
    progress: Literal["auto"] | bool = "auto"
    """Show a progress bar; auto does at a terminal."""
