"""The settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepseek.config import Config
from deepseek.optim.precision import PrecisionName
from deepseek.optim.schedules import ScheduleName


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
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices inside the model: it needs far fewer tokens on short runs, at a dearer step."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls after the warm-up."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; null is 2% of all steps, at least 10 where there are 100."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; vectors (biases, norms) have none."""
    betas: list[float] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """AdamW's decay rates of the first and second moment."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null leaves them."""
    precision: PrecisionName = "auto"
    """Number format of matrix products: bf16 where the hardware has it, else fp32."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile: auto decides by the measured step time whether it will pay for itself."""
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
    log_every: int = Field(default=10, ge=1)
    """Steps between lines in metrics.jsonl."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do at a corrupt record in the data."""
    tensorboard: bool = True
    """Write TensorBoard events too, where tensorboard is installed."""
    progress: Literal["auto"] | bool = "auto"
    """Show a progress bar; auto does at a terminal."""
