"""A tree of tensors and plain values, taken apart into tensors by path and JSON, and put together again.

Comes back as it was: tuples, keys that are numbers, NaN. Marks in the JSON are tables with one key that begins with $.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from deepseek.errors import CheckpointError

_TENSOR, _TUPLE, _FLOAT, _DICT = "$tensor", "$tuple", "$float", "$dict"


def split_tree(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return (plain values with marks where tensors were, tensors by path `a/b/0`).

    Holds dicts, lists, tuples, tensors, None, booleans, numbers and text (numpy's scalars become Python's). Raises
    CheckpointError naming the path of anything else.
    """
    splitter = _Splitter()
    return splitter.walk(tree, ""), splitter.tensors


class _Splitter:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def walk(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return {_TENSOR: self._add(value, path)}
        if isinstance(value, dict):
            return self._walk_dict(value, path)
        if isinstance(value, list | tuple):
            items = [self.walk(item, _below(path, index)) for index, item in enumerate(value)]
            return {_TUPLE: items} if isinstance(value, tuple) else items
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            value = value.item()
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {_FLOAT: str(value)}
        if value is None or isinstance(value, bool | int | str):
            return value
        raise CheckpointError(
            f"a checkpoint can't hold what is at '{path}'",
            found=type(value).__name__,
            wanted="tensors, numbers, text, None, lists, tuples and dicts",
            fix="let state_dict() return such values (torch.from_numpy for arrays)",
        )

    def _walk_dict(self, value: dict[Any, Any], path: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.walk(item, _below(path, key)) for key, item in value.items()}
        return {_DICT: [[self.walk(key, path), self.walk(item, _below(path, key))] for key, item in value.items()]}

    def _add(self, tensor: Tensor, path: str) -> str:
        """Keep the tensor under its path; where keys with slashes make two paths alike, the later gets a number."""
        name, number = path, 1
        while name in self.tensors or name == "__metadata__":
            number += 1
            name = f"{path}#{number}"
        self.tensors[name] = tensor
        return name


def _below(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def join_tree(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `split_tree`. Raises KeyError for a tensor that is not there."""
    if isinstance(plain, list):
        return [join_tree(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        mark, value = next(iter(plain.items()))
        if mark == _TENSOR:
            return tensors[value]
        if mark == _TUPLE:
            return tuple(join_tree(item, tensors) for item in value)
        if mark == _FLOAT:
            return float(value)
        if mark == _DICT:
            return {join_tree(key, tensors): join_tree(item, tensors) for key, item in value}
    return {key: join_tree(value, tensors) for key, value in plain.items()}
