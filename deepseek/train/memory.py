"""Will it fit: the memory a training run needs, reckoned on shapes alone before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepseek.errors import MemoryEstimateError
from deepseek.hardware import memory_available
from deepseek.tasks.task import Task, to_device


class MemoryEstimate(NamedTuple):
    """Bytes by part. Activations are those of float32: with bf16 about half is used."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self)


def estimate_training(build: Callable[[], nn.Module], task: Task, batch: Any) -> MemoryEstimate:
    """Reckon AdamW training of the model that `build` makes, on batches of the shapes of `batch` (on any device)."""
    with torch.device("meta"):
        model = build()
    parameters = {id(p): p for p in model.parameters()}
    owned = {p.untyped_storage()._cdata for p in parameters.values()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            saved[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []  # so that no storage is freed and its identity used again
    on_meta = to_device(batch, torch.device("meta"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.loss_sum(model, on_meta)
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    return MemoryEstimate(weights, weights, 2 * weights, sum(saved.values()))


def refuse_if_too_large(estimate: MemoryEstimate, device: torch.device, bf16: bool) -> None:
    """Raise MemoryEstimateError when the run can't fit in what the device has free."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_available()
    needed = estimate.total - (estimate.activations // 2 if bf16 else 0)
    if available is None or needed <= available:
        return
    parts = ", ".join(f"{name} {value / 2**30:.1f}" for name, value in estimate._asdict().items())
    raise MemoryEstimateError(
        "the run would not fit in memory",
        found=f"about {needed / 2**30:.1f} GiB needed ({parts}), {available / 2**30:.1f} GiB free",
        fix="lower batch_size (and raise gradient_accumulation_steps), max_length, d_model or num_layers, "
        "or set gradient_checkpointing",
    )
