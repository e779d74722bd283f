"""Who reads a module's output: found by running the model once, so that names and Python code do not matter.

Not here: what is done with it (`fold_norm`, `deepseek.quantization.smooth`).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ELSEWHERE = "elsewhere"
"""The reader of what anything but a known module reads, and the source of what anything else made."""


def watch_readers(
    model: nn.Module, example_inputs: Any, makers: Mapping[int, int | None], readers: set[int]
) -> tuple[Mapping[int, set[int | str]], Mapping[int, set[int | str]]]:
    """Run `model` once in eval mode; return who reads each maker's output, and whose output each reader takes.

    Modules are given and returned as their `id`. `makers` says how many dimensions each one's output must have (None:
    any); another output counts as read elsewhere. `example_inputs`: a dict of inputs by name, one tensor, or positional
    arguments. A reader counts for its first argument, and only if it gets the very tensor that the maker returned.
    """
    mode = _Readers()
    sources: dict[int, set[int | str]] = defaultdict(set)

    def maker_ran(module: nn.Module, args: Any, output: Any) -> None:
        dims = makers[id(module)]
        if not isinstance(output, Tensor) or dims not in (None, output.dim()):
            mode.readers[id(module)].add(ELSEWHERE)
        else:
            mode.made_by[id(output)] = (id(module), output)

    def reader_starts(module: nn.Module, args: Any, kwargs: Any) -> None:
        taken = args[0] if args else kwargs.get("input")
        known = mode.made_by.get(id(taken))
        sources[id(module)].add(known[0] if known else ELSEWHERE)
        mode.running = id(module)

    def reader_ran(module: nn.Module, args: Any, output: Any) -> None:
        mode.running = None

    handles: list[Any] = []
    for module in model.modules():
        if id(module) in readers:
            handles.append(module.register_forward_pre_hook(reader_starts, with_kwargs=True))
            handles.append(module.register_forward_hook(reader_ran))
        if id(module) in makers:
            handles.append(module.register_forward_hook(maker_ran))
    try:
        with _evaluating(model), torch.no_grad(), mode:
            mode.read(_call(model, example_inputs))
    finally:
        for handle in handles:
            handle.remove()
    return mode.readers, sources


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch left its base untyped
    """Notes for each watched tensor which module, or what else, computes with it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made_by: dict[int, tuple[int, Tensor]] = {}  # the tensor stays alive, so that no id is used twice
        self.readers: dict[int, set[int | str]] = defaultdict(set)
        self.running: int | None = None

    def read(self, values: Any) -> None:
        reader = ELSEWHERE if self.running is None else self.running
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor) and id(leaf) in self.made_by:
                self.readers[self.made_by[id(leaf)][0]].add(reader)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read((args, kwargs))
        return func(*args, **(kwargs or {}))


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
