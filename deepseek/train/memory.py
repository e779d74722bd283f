"""Will it fit: the memory a training run needs, reckoned on shapes alone before anything is allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek.errors import MemoryEstimateError
from deepseek.hardware import memory_available
from deepseek.tasks.task import Task, to_device


class MemoryEstimate(NamedTuple):
    """Bytes by part, in float32. Activations include what the backward pass holds for a moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self)


def estimate_training(build: Callable[[], nn.Module], task: Task, batch: Any) -> MemoryEstimate:
    """Reckon AdamW training of the model that `build` makes, on batches of the shapes of `batch` (on any device).

    One step runs on torch's meta device, where tensors have shapes and no memory, and the live bytes are counted.
    """
    on_meta = to_device(batch, torch.device("meta"))
    with torch.device("meta"):
        model = build()
    with _LiveBytes() as live:
        task.loss_sum(model, on_meta).backward()  # type: ignore[no-untyped-call]
    parameters = {id(p): p for p in model.parameters()}
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    return MemoryEstimate(weights, weights, 2 * weights, max(0, live.peak - weights))


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made inside that are alive; `peak` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def refuse_if_too_large(estimate: MemoryEstimate, device: torch.device, bf16: bool) -> None:
    """Raise MemoryEstimateError when the run can't fit in what the device has free.

    With `bf16` a quarter less is reckoned for activations: at toy sizes the truth is between a tenth more and a quarter
    less than in float32.
    """
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_available()
    needed = estimate.total - (estimate.activations // 4 if bf16 else 0)
    if available is None or needed <= available:
        return
    parts = ", ".join(f"{name} {value / 2**30:.1f}" for name, value in estimate._asdict().items())
    raise MemoryEstimateError(
        "the run would not fit in memory",
        found=f"about {needed / 2**30:.1f} GiB needed ({parts}), {available / 2**30:.1f} GiB free",
        fix="lower batch_size (and raise gradient_accumulation_steps), max_length, d_model or num_layers, "
        "or set gradient_checkpointing",
    )
