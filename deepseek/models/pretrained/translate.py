"""One weight of ours from theirs and back, by the rules of a family.

Not here: where their tensors come from (`store`), and which of ours are filled (`fill`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Rule


@dataclass(frozen=True)
class Source:
    """Where one weight of ours comes from: their names in order, and how they become ours (see `Rule`)."""

    names: tuple[str, ...]
    how: Literal["copy", "transpose", "concat", "stack"]


def source_of(name: str, shape: Sequence[int], rules: Sequence[Rule]) -> Source | None:
    """Return the source of our weight `name` of the given shape by the first rule that fits, None where none does."""
    for rule in rules:
        match = _pattern(rule.ours).fullmatch(name)
        if match is None:
            continue
        *indices, rest = match.groups()
        theirs = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
        names = [_filled(text, indices) + rest for text in theirs]
        if rule.how == "stack":
            names = [text.replace("{e}", str(index)) for text in names for index in range(shape[0])]
        return Source(tuple(names), rule.how)
    return None


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    """Return the expression of a rule's left side: a group for each index, and one for what follows a prefix."""
    digits = re.escape(ours).replace(re.escape("{}"), "([0-9]+)")
    return re.compile(digits + ("(.+)" if ours.endswith(".") else "()"), re.DOTALL)


def _filled(theirs: str, indices: Sequence[str]) -> str:
    for index in indices:
        theirs = theirs.replace("{}", index, 1)
    return theirs


def part_shape(source: Source, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that each of their tensors has, where ours has `shape`."""
    if source.how == "transpose":
        return tuple(reversed(shape))
    if source.how == "stack":
        return tuple(shape[1:])
    if source.how == "concat":
        return (shape[0] // len(source.names), *shape[1:])
    return tuple(shape)


def to_ours(source: Source, read: Callable[[str], Tensor], shape: Sequence[int] | None = None) -> Tensor:
    """Return our weight from theirs, which `read` returns by name; contiguous, and in memory of its own.

    With `shape` (of ours), theirs are checked first. Raises ModelError for a tensor of another shape.
    """
    parts = []
    for name in source.names:
        part = read(name)
        if shape is not None and tuple(part.shape) != part_shape(source, shape):
            raise ModelError(
                f"'{name}' in the checkpoint has the wrong shape",
                found=tuple(part.shape),
                wanted=part_shape(source, shape),
                fix="check that config.json belongs to these weights",
            )
        parts.append(part)
    if source.how == "concat":
        return torch.cat(parts)
    if source.how == "stack":
        return torch.stack(parts)
    turned = parts[0].t() if source.how == "transpose" else parts[0]
    return turned.clone(memory_format=torch.contiguous_format)


def to_theirs(source: Source, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return their tensors by name from one weight of ours; views of it, not contiguous."""
    if source.how == "transpose":
        return [(source.names[0], tensor.t())]
    if source.how == "concat":
        return list(zip(source.names, tensor.chunk(len(source.names)), strict=True))
    if source.how == "stack":
        return list(zip(source.names, tensor.unbind(), strict=True))
    return [(source.names[0], tensor)]
