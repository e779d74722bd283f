"""A tree of tensors and plain values, taken apart into tensors by path and JSON, and put together again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_MARK = "$tensor"


def split_tree(tree: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Return (plain values with marks where tensors were, tensors by path `a/b/0`). Dict keys must be text."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {_MARK: path}
        if isinstance(value, dict):
            return {key: walk(item, f"{path}/{key}" if path else str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item, f"{path}/{index}") for index, item in enumerate(value)]
        return value

    return walk(tree, path), tensors


def join_tree(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `split_tree`; tuples come back as lists."""
    if isinstance(plain, dict):
        if set(plain) == {_MARK}:
            return tensors[plain[_MARK]]
        return {key: join_tree(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [join_tree(value, tensors) for value in plain]
    return plain
