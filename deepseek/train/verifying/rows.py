"""Batches taken apart by rows and put together again, whatever they are made of: tensors, dicts, lists, tuples.

The first tensor of a batch says how many rows it has; what has another length stays whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def leaves(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from leaves(value)


def row_count(batch: Any) -> int:
    """Return the rows of a batch; 0 where it has no tensor with dims."""
    return next((tensor.shape[0] for tensor in leaves(batch) if tensor.dim()), 0)


def take_rows(batch: Any, rows: Sequence[int] | range) -> Any:
    """Return a batch of the rows at these positions."""
    count, index = row_count(batch), torch.tensor(list(rows))

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            fits = value.dim() > 0 and value.shape[0] == count
            return value.index_select(0, index.to(value.device)) if fits else value
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            one_a_row = _one_a_row(value, count)
            return type(value)(value[row] for row in rows) if one_a_row else type(value)(walk(item) for item in value)
        return value

    return walk(batch)


def _one_a_row(values: list[Any] | tuple[Any, ...], count: int) -> bool:
    """Return whether a list holds an entry for each row, and not fields of `count` rows each."""
    fields = all(isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count for value in values)
    return len(values) == count and not fields


def split_rows(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Return parts of these sizes, in order; they add up to the batch's rows."""
    parts, start = [], 0
    for size in sizes:
        parts.append(take_rows(batch, range(start, start + size)))
        start += size
    return parts


def join_rows(batches: Sequence[Any]) -> Any:
    """Return the batches as one. Raises RuntimeError (torch.cat) where their shapes do not fit together."""
    counts = [row_count(batch) for batch in batches]

    def walk(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(list(values)) if first.dim() else first
        if isinstance(first, Mapping):
            return {key: walk([value[key] for value in values]) for key in first}
        if isinstance(first, list | tuple):
            if all(_one_a_row(value, count) for value, count in zip(values, counts, strict=True)):
                return type(first)(entry for value in values for entry in value)
            return type(first)(walk(fields) for fields in zip(*values, strict=True))
        return first

    return walk(batches)


def row_digests(batch: Any) -> list[bytes]:
    """Return a digest of each row's tensors: equal rows have equal digests."""
    count = row_count(batch)
    tensors = [t.detach().cpu() for t in leaves(batch) if t.dim() and t.shape[0] == count]
    digests = []
    for row in range(count):
        digest = hashlib.blake2b(digest_size=16)
        for tensor in tensors:
            part = tensor[row].contiguous()
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.reshape(-1).view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        digests.append(digest.digest())
    return digests


def same(first: Any, second: Any) -> bool:
    """Return whether two batches hold the same tensors, bit for bit."""
    ours, theirs = list(leaves(first)), list(leaves(second))
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )
