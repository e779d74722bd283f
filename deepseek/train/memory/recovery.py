"""When memory runs out in the middle of a step: the step is done again on smaller micro-batches, with equal results.

A step's loss is a sum over its items, divided once, so that the parts of a batch give the batch's gradient up to the
rounding of sums. Only where samples see each other inside the model (batch norm) it is another one: the log says so.
Not here: the retry itself, which is in `step.py`; avoiding it by planning (`plan.py`).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.errors import TrainingError

logger = logging.getLogger("deepseek.train")

_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: of a GPU, of torch's CPU allocator, or Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def rows_of(batch: Any) -> int:
    """Return the samples of a batch: the first size of its tensors, lists of samples counting too.

    Raises TrainingError where the parts disagree, so that it can't be split.
    """
    sizes = {leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1:
        raise TrainingError(
            "a batch of this form can't be split into smaller ones",
            found=f"tensors of {sorted(sizes)} rows" if sizes else "no tensor with rows",
            wanted="tensors whose first dimension is the sample",
            fix="lower batch_size",
        )
    return int(sizes.pop())


def split_batch(batch: Any, parts: int = 2) -> list[Any]:
    """Return the batch cut along its first dimension into at most `parts` of nearly equal size, views of the original.

    Any nesting of dicts, tuples, named tuples and lists of tensors; what is no tensor, or has no dimension, goes into
    every part, and a list with an entry for each sample is cut too. A packed batch keeps its documents whole, since
    they lie inside a row. Raises TrainingError for a batch of one row, or of tensors with different numbers of rows.
    """
    rows = rows_of(batch)
    if rows < 2:
        raise TrainingError(
            "memory ran out with one sample in the micro-batch",
            found="a batch of one row, which can't be split",
            fix="set recompute: full, optimizer_bits: 8 or precision: bf16, or shorten the samples (max_length, "
            "image size) or the model",
        )
    parts = min(parts, rows)
    ends = [rows * part // parts for part in range(parts + 1)]
    return [_rows(batch, start, end, rows) for start, end in zip(ends, ends[1:], strict=False)]


class MicroBatchSplitter:
    """Remembers into how many parts micro-batches must be cut to fit, so that memory runs out once and not each step.

    `parts` goes into the checkpoint by `state_dict`.
    """

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts
        self._told = False

    def split(self, batches: Sequence[Any]) -> list[Any]:
        """Return the micro-batches of a step, each cut into `parts` (fewer where it has fewer rows)."""
        if self.parts == 1:
            return list(batches)
        return [part for batch in batches for part in _cut(batch, self.parts)]

    def recover(self, error: BaseException, batches: Sequence[Any], model: nn.Module) -> bool:
        """Return whether to do the step again: memory ran out, and smaller parts are possible. Gradients are freed.

        Call it outside the `except` block that caught `error`: there the traceback still holds the step's tensors.
        Raises TrainingError (from `error`) where the parts are single rows already.
        """
        if not is_out_of_memory(error):
            return False
        rows = max(rows_of(batch) for batch in batches)
        error.__traceback__ = None
        if self.parts >= rows:
            try:
                split_batch(batches[0], 2) if rows == 1 else split_batch(split_batch(batches[0], rows)[0])
            except TrainingError as problem:
                raise problem from error
        self.parts = min(2 * self.parts, rows)
        self._tell(model, rows)
        release(model)
        return True

    def state_dict(self) -> dict[str, int]:
        """Return the number of parts."""
        return {"parts": self.parts}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take the number of parts from `state_dict`."""
        self.parts = max(1, int(state.get("parts", 1)))

    def _tell(self, model: nn.Module, rows: int) -> None:
        normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        change = "; batch norms see fewer samples at a time" if normed else "; the update stays the same"
        level = logging.DEBUG if self._told and not normed else logging.WARNING
        logger.log(level, "memory ran out: micro-batches of %d are cut into %d parts%s", rows, self.parts, change)
        self._told = True


def release(model: nn.Module) -> None:
    """Give back what a failed step left: gradients, tensors in reference cycles, blocks that the allocator keeps."""
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cut(batch: Any, parts: int) -> list[Any]:
    rows = rows_of(batch)
    return [batch] if rows < 2 else split_batch(batch, min(parts, rows))


def _rows(value: Any, start: int, end: int, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:end] if value.dim() else value
    if isinstance(value, Mapping):
        return {key: _rows(part, start, end, rows) for key, part in value.items()}
    if isinstance(value, tuple):
        cut = [_rows(part, start, end, rows) for part in value]
        return type(value)(*cut) if hasattr(value, "_fields") else tuple(cut)
    if isinstance(value, list):
        if len(value) == rows and not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in tree_leaves(value)):
            return value[start:end]
        return [_rows(part, start, end, rows) for part in value]
    return value
