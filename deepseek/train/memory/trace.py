"""Every block of memory that a step takes and gives back, in order, from a step on shapes alone.

Floating-point tensors are torch's fake tensors: they have shape, dtype and device, autocast casts them, and no memory
is behind them. Numbers that steer a step (token ids, labels, lengths, masks) are small and stay real, so that code that
looks at them does what it does in training.
Not here: what they come to, and what a run's settings are (`memory.py`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_REAL_LIMIT = 64 << 20  # bytes of a whole-number tensor above which it is not made


class Event(NamedTuple):
    """A block taken (`size` above 0) or given back (below 0), by its number."""

    block: int
    size: int


class StepTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records `events` of all that is done inside, on fake tensors made by `fake_model` and `fake_batch`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.events: list[Event] = []
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[int, int] = {}
        self._blocks = 0

    def model(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model (of any device, meta too) with fake weights on the device; the bytes are events."""
        tensors = [*model.parameters(), *model.buffers()]
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        made: dict[int, Tensor] = {}
        for module in copied.modules():
            for name, weight in [*module._parameters.items(), *module._buffers.items()]:
                if weight is None:
                    continue
                if id(weight) not in made:
                    made[id(weight)] = self._like(weight)
                table: Any = module._parameters if name in module._parameters else module._buffers
                table[name] = made[id(weight)]
        return copied

    def batch(self, batch: Any) -> Any:
        """Return a batch with fake tensors in place of its floating-point ones."""
        return tree_map_only(Tensor, self._input, batch)

    def _input(self, tensor: Tensor) -> Tensor:
        return self._like(tensor) if _is_fake_kind(tensor) else self._count(tensor.to(self.device))

    def number(self, tensor: Tensor) -> int:
        """Return the number of the block that a tensor lies in, 0 where it was not made inside."""
        return self._known.get(tensor.untyped_storage()._cdata, 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = self._run(func, given, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _run(self, func: Callable[..., Any], given: list[Tensor], args: Any, kwargs: Any) -> Any:
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            return func(*_with_whole_indices(func, args), **kwargs)
        if given:
            return func(*args, **kwargs)
        with self.fake:
            made = func(*args, **kwargs)
        real = isinstance(made, Tensor) and not _is_fake_kind(made) and made.nbytes <= _REAL_LIMIT
        return func(*args, **kwargs) if real else made

    def _like(self, tensor: Tensor) -> Tensor:
        with self.fake:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        self._count(made)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known and size:
            self._blocks += 1
            self._known[key] = block = self._blocks
            self.events.append(Event(block, size))
            weakref.finalize(storage, self._forget, key, block, size).atexit = False
        return tensor

    def _forget(self, key: int, block: int, size: int) -> None:
        if self._known.get(key) == block:
            del self._known[key]
            self.events.append(Event(block, -size))


def _is_fake_kind(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or tensor.device.type == "meta"


def _with_whole_indices(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put positions in place of a real mask, so that the number of what it picks is known."""
    if func not in _INDEXED or len(args) < 2:
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            indices += index.nonzero().unbind(1)
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
