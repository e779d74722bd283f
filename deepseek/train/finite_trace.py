"""Follows every operator that runs, forward and backward, and remembers where values that are not finite were made.

A value that is not finite is traced to its origin: the operator that made it of finite ones, or the weight or batch
that brought it in. Infinities that are meant (minus infinity in an attention mask) are no origin, unless an operator
makes NaN of them. Not here: what is run, and what is said about it (`first_bad.py`).
"""

from __future__ import annotations

import bisect
import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What these return was never written: it may hold anything.
_UNWRITTEN = ("aten::empty", "aten::new_empty", "aten::resize_", "aten::set_")
# What these are given to write to is overwritten, not read.
_OVERWRITING = ("aten::copy_", "aten::fill_", "aten::zero_", "aten::normal_", "aten::uniform_", "aten::bernoulli_")


@dataclass(frozen=True)
class TensorRange:
    """What a tensor holds: its smallest and largest finite value, and which share of it is not finite."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float
    bad: float

    def __str__(self) -> str:
        span = f"from {self.low:.4g} to {self.high:.4g}" if self.low <= self.high else "without a finite value"
        bad = f", {self.bad:.3g} of it not finite" if self.bad else ""
        return f"{self.name} {self.dtype} {self.shape} {span}{bad}"


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a value that is not finite was made, or came in. `meant`: an infinity that somebody asked for.

    `part` is that of the step; in the backward pass `node` names the autograd node at work.
    """

    number: int
    part: str
    operator: str
    node: str
    layer: str
    inputs: tuple[TensorRange, ...]
    output: TensorRange
    meant: bool = False


def is_float(value: object) -> bool:
    """Return whether `value` is a tensor that can hold NaN, in a layout that can be searched."""
    return (
        isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and value.layout is torch.strided
        and value.device.type != "meta"
    )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a float tensor are finite."""
    return bool(torch.isfinite(_wide(tensor)).all())


def range_of(name: str, tensor: Tensor) -> TensorRange:
    """Return what a float tensor of any shape holds; of complex values, the magnitudes."""
    values = _wide(tensor.detach())
    values = values.abs() if values.is_complex() else values
    finite = torch.isfinite(values)
    count = int(finite.sum())
    low, high = math.inf, -math.inf
    if count:
        low = float(torch.where(finite, values, math.inf).min())
        high = float(torch.where(finite, values, -math.inf).max())
    bad = 1 - count / values.numel() if values.numel() else 0.0
    return TensorRange(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), low, high, bad)


def _wide(tensor: Tensor) -> Tensor:
    """Formats of 8 bits have no isfinite."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


class Layers:
    """Knows the module that runs, by its path in the model; in the backward pass, the module that ran forward."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._model = model
        self._stack: list[str] = []
        self._since: list[int] = []  # sequence number of the first autograd node, and who made it
        self._layer: list[str] = []

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Follow the calls of all modules while the block runs."""
        with contextlib.ExitStack() as stack:
            for module in self._model.modules():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def current(self) -> str:
        """Return the path of the module at work; empty outside all modules (in the task's loss)."""
        if self._stack:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        place = bisect.bisect_right(self._since, node._sequence_nr()) - 1
        return self._layer[place] if 0 <= place < len(self._layer) else ""

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(self._names.get(id(module), ""))
        self._mark()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()
        self._mark()

    def _mark(self) -> None:
        number = torch._C._autograd._get_sequence_nr()
        if not self._since or number >= self._since[-1]:  # another thread of the backward pass counts for itself
            self._since.append(number)
            self._layer.append(self._stack[-1] if self._stack else "")


class FiniteTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, `origin(tensor)` tells where the first value that is not finite came from.

    The caller sets `part` as the step goes on.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "forward"
        self._layers = layers
        self._origins: dict[int, Origin] = {}  # by storage, so that views and tensors changed in place are known
        self._count = 0

    def origin(self, tensor: Tensor) -> Origin | None:
        """Return where a value that is not finite in this tensor's memory came from, if it was seen."""
        return self._origins.get(tensor.untyped_storage()._cdata)

    def seed(self, part: str, values: Mapping[str, Tensor], *, masks: bool) -> None:
        """Name tensors that hold values that are not finite before anything runs; with `masks` minus infinity may."""
        for name, tensor in values.items():
            if is_float(tensor) and not is_finite(tensor):
                meant = masks and not bool((torch.isnan(tensor) | torch.isposinf(tensor)).any())
                self._count += 1
                origin = Origin(self._count, part, "", "", name, (), range_of("", tensor), meant)
                self._remember(tensor, origin)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        read, written = _read_and_written(func, args, kwargs)
        before = [self._look(name, *pair) for pair in read] if written else None  # in place: look before it is gone
        result = func(*args, **kwargs)
        if name.startswith(_UNWRITTEN):
            return result
        outputs = [*tree_leaves(result), *written]
        bad = [output for output in outputs if is_float(output) and not is_finite(output)]
        if bad:
            inputs = before if before is not None else [self._look(name, *pair) for pair in read]
            scalars = any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in tree_leaves((args, kwargs)))
            for output in bad:
                self._remember(output, self._judge(name, inputs, scalars, output))
        return result

    def _look(self, operator: str, name: str, tensor: Tensor) -> tuple[TensorRange, Origin | None, bool]:
        """Return what an input holds, where its bad values came from, and whether NaN is among them."""
        found = range_of(name, tensor)
        return found, self.origin(tensor) if found.bad else None, bool(found.bad) and bool(_wide(tensor).isnan().any())

    def _judge(
        self, operator: str, inputs: list[tuple[TensorRange, Origin | None, bool]], scalars: bool, output: Tensor
    ) -> Origin:
        """Return the origin of an output that is not finite: that of an input, or this operator."""
        origins = [origin for _, origin, _ in inputs if origin is not None]
        # Running means come last: in training a batch norm writes them, and they keep the NaN of an earlier step.
        origins.sort(key=lambda origin: (origin.part == "buffers", origin.number))
        for origin in origins:
            if not origin.meant:
                return origin
        makes_nan = bool(_wide(output).isnan().any()) and not any(nan for _, _, nan in inputs)
        if origins and not makes_nan:
            return origins[0]
        ranges = tuple(found for found, _, _ in inputs)
        return self._made_here(operator, ranges, range_of("", output), scalars and not makes_nan)

    def _made_here(self, operator: str, inputs: tuple[TensorRange, ...], output: TensorRange, meant: bool) -> Origin:
        self._count += 1
        node = torch._C._current_autograd_node()
        layer, made_by = self._layers.current(), node.name() if node is not None else ""
        return Origin(self._count, self.part, operator, made_by, layer, inputs, output, meant)

    def _remember(self, tensor: Tensor, origin: Origin) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._origins:
            weakref.finalize(storage, self._origins.pop, storage._cdata, None)
        self._origins[storage._cdata] = origin


def _read_and_written(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[tuple[str, Tensor]], list[Tensor]]:
    """Return the float tensors that an operator reads, by argument, and those that it changes."""
    schema = func._schema
    read: list[tuple[str, Tensor]] = []
    written: list[Tensor] = []
    for position, argument in enumerate(schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        tensors = [leaf for leaf in _leaves(value) if is_float(leaf)]
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if changed:
            written += tensors
        if not changed or not (argument.kwarg_only or schema.name.startswith(_OVERWRITING)):
            names = [argument.name] if len(tensors) == 1 else [f"{argument.name}[{i}]" for i in range(len(tensors))]
            read += zip(names, tensors, strict=True)
    return read, written


def _leaves(value: Any) -> Iterable[Any]:
    return tree_leaves(value) if isinstance(value, list | tuple) else (value,)
