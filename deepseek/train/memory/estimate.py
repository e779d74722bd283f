"""Will it fit: the memory a training run needs, reckoned on shapes alone before anything is allocated.

One micro-batch runs forward and backward on tensors without memory (`trace.py`), and the live bytes are counted.
What a process takes beyond them is small where large blocks have mappings of their own (`allocator.py`; measured
0 to 6% over eleven runs from 200 to 450 MB); glibc's default adds holes between blocks, 14% to 80% there.
Not here: which settings to take (`plan.py`), what to do when it did not fit (`recovery.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from deepseek.errors import MemoryEstimateError
from deepseek.hardware import memory_available
from deepseek.optim.build import state_bytes, use_bf16_weights
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task
from deepseek.train.config import TrainConfig
from deepseek.train.memory.size import in_words
from deepseek.train.memory.trace import Event, StepTrace
from deepseek.train.recompute import apply_recompute

_WORKSPACE_CPU = 12 << 20  # measured: packing buffers of the matrix products, code paths touched for the first time
_WORKSPACE_CUDA = 48 << 20  # cuBLAS's workspace on Hopper is 32 MiB a handle (CUBLAS_WORKSPACE_CONFIG), and some more
_COMPILED = 0.75  # share of the eager activations that a compiled step keeps: measured GPT 0.63 and 0.71, ViT 0.82


class MemoryEstimate(NamedTuple):
    """Bytes by part. Activations include what the backward pass holds for a moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int = 0
    """What the kernels take for themselves."""
    copies: int = 0
    """The averaged weights (EMA), and the copy that a checkpoint is written from."""

    @property
    def total(self) -> int:
        """The sum of all parts: the peak."""
        return sum(self)


def estimate_training(
    build: Callable[[], nn.Module],
    task: Task,
    batch: Any,
    config: TrainConfig | None = None,
    precision: Precision | None = None,
) -> MemoryEstimate:
    """Reckon training of the model that `build` makes on micro-batches like `batch` (on any device).

    `config` says the optimizer, recompute, accumulation, averaged weights and checkpoints (default: plain AdamW);
    `precision` the number format and the device (default: float32 on the CPU). Nothing is allocated and no weight of
    a model that exists is touched. Raises what the model or the task raises for such a batch.
    """
    config = config or TrainConfig(async_checkpoints=False)
    precision = precision or Precision("fp32", torch.device("cpu"))
    with torch.device("meta"):
        made = build()
    trace = StepTrace(precision.device)
    model = trace.model(made).train()
    with trace:
        if config.weights_dtype == "bf16":
            use_bf16_weights(model)
        apply_recompute(model, config.recompute)
        before = len(trace.events)
        inputs = trace.batch(batch)
        with precision.autocast():
            loss = task.loss_sum(model, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
    weights = sum(weight.nbytes for weight in {id(w): w for w in [*model.parameters(), *model.buffers()]}.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    accumulates = config.gradient_accumulation_steps > 1 or config.tokens_per_step is not None
    held = {trace.number(gradient) for gradient in gradients}
    parts = MemoryEstimate(
        weights,
        sum(gradient.nbytes for gradient in gradients),
        state_bytes(model, config),
        0,
        _WORKSPACE_CUDA if precision.device.type == "cuda" else _WORKSPACE_CPU,
        _copies(model, weights, config, precision.device),
    )
    on_gpu = precision.device.type == "cuda"
    peak = _peak(trace.events[before:], held, parts.gradients if accumulates else 0, 512 if on_gpu else 1)
    activations = max(0, peak - parts.gradients)
    return parts._replace(activations=int(activations * _COMPILED) if config.compile is True else activations)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a run on `device` can still take, None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory_available()


def refuse_if_too_large(estimate: MemoryEstimate, device: torch.device) -> None:
    """Raise MemoryEstimateError when the run can't fit in what the device has free."""
    available = free_memory(device)
    if available is None or estimate.total <= available:
        return
    raise MemoryEstimateError(
        "the run would not fit in memory",
        found=f"about {in_words(estimate.total)} needed ({parts_in_words(estimate)}), {in_words(available)} free",
        fix="set memory_budget: 0.8 to have recompute and micro-batch chosen; or lower batch_size (and raise "
        "gradient_accumulation_steps), max_length, d_model or num_layers",
    )


def parts_in_words(estimate: MemoryEstimate) -> str:
    """Return the parts that are not nothing: `weights 1.2 GiB, gradients 1.2 GiB, ...`."""
    return ", ".join(f"{name} {in_words(size)}" for name, size in estimate._asdict().items() if size)


def _peak(events: Iterable[Event], gradients: set[int], held: int, rounding: int) -> int:
    """Return the most bytes alive at once, gradients among them, weights not.

    With `held` bytes of gradients of earlier micro-batches, each new gradient is added to them and given back at once.
    """
    now = peak = held
    for event in events:
        size = -(-abs(event.size) // rounding) * rounding
        now += size if event.size > 0 else -size
        peak = max(peak, now)
        if held and event.block in gradients and event.size > 0:
            now -= size
    return peak


def _copies(model: nn.Module, weights: int, config: TrainConfig, device: torch.device) -> int:
    """Return the bytes of the averaged weights, and of the state copied for the writer of checkpoints."""
    average = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad) if config.ema_decay else 0
    if not config.async_checkpoints or device.type != "cpu":
        return average  # the copy of a GPU's state is in main memory
    return 2 * average + weights + state_bytes(model, config)
