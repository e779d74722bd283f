"""Which modules need float32: found by running a few batches in float32 and each module a second time in low precision.

A module is measured alone, on the inputs it has in the float32 run, so that errors of those before it don't count. One
that passes a limit is kept in float32 and the run repeated, until none does; of nested ones the innermost counts.
Forward only, without dropout: gradients that vanish in float16 are the loss scale's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from deepseek.optim.fp32_modules import keep_fp32
from deepseek.optim.precision import Precision

_ROUNDS = 4

_FILLS = frozenset({"masked_fill", "masked_fill_", "where", "fill", "fill_", "full", "full_like", "scalar_tensor"})
"""Operators that may write an infinity on purpose: masks."""


class Limits(NamedTuple):
    """What a module may do in low precision: relative error of its outputs, share of them that become 0."""

    error: float = 0.05
    flushed: float = 0.05


@dataclasses.dataclass(frozen=True)
class SensitiveOperator:
    """A module that needs float32, and why.

    `error` is the norm of the difference over the norm of the float32 outputs (infinite where something overflowed),
    `overflow` the number of outputs that are not finite though they are in float32, `flushed` the share of outputs that
    become 0, `operators` the torch operators inside that made such numbers from finite ones.
    """

    name: str
    kind: str
    error: float
    overflow: int
    flushed: float
    operators: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Say in a few words what is wrong."""
        if self.overflow:
            return "overflow in " + (", ".join(self.operators) or "the output")
        return f"error {self.error:.1%}" if self.error > self.flushed else f"{self.flushed:.0%} of the values become 0"


def find_fp32_operators(
    model: nn.Module, task: Any, batches: Sequence[Any], precision: Precision, limits: Limits | None = None
) -> list[SensitiveOperator]:
    """Return the modules of `model` that need float32 under `precision`, in the order of the model; it stays as it is.

    `task` has `loss_sum(model, batch)`; `batches` are on the model's device. A precision without autocast gives none.
    Keep them in float32 with `keep_fp32(model, [found.name for found in ...])`.
    """
    if precision.dtype is None:
        return []
    modes = {module: module.training for module in model.modules()}
    found: list[SensitiveOperator] = []
    model.eval()
    try:
        for _ in range(_ROUNDS):
            kept = keep_fp32(model, [operator.name for operator in found])
            try:
                new = _innermost(_measure(model, task, batches, precision), limits or Limits())
            finally:
                kept.remove()
            found += new
            if not new:
                break
    finally:
        for module, mode in modes.items():
            module.training = mode
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return sorted(found, key=lambda operator: order[operator.name])


def sensitivity_table(operators: Sequence[SensitiveOperator]) -> str:
    """Return the table to print: module, kind, error, overflow, flushed, reason."""
    head = ("module", "kind", "error", "overflow", "to 0", "why")
    rows = [(o.name, o.kind, f"{o.error:.2e}", str(o.overflow), f"{o.flushed:.1%}", o.reason) for o in operators] or [
        ("none: every module may run in low precision", "", "", "", "", "")
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join(line.rstrip() for line in lines)


@dataclasses.dataclass
class _Tally:
    """Sums over the outputs of one module."""

    kind: str
    difference: float = 0.0
    reference: float = 0.0
    numbers: int = 0
    flushed: int = 0
    overflow: int = 0
    operators: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, exact: Tensor, lowered: Tensor) -> None:
        exact, lowered = exact.detach().double(), lowered.detach().double()
        fine, lost = exact.isfinite(), exact.isfinite() & ~lowered.isfinite()
        both = fine & ~lost
        self.difference += float((exact - lowered)[both].square().sum())
        self.reference += float(exact[both].square().sum())
        self.flushed += int((both & (exact != 0) & (lowered == 0)).sum())
        self.overflow += int(lost.sum())
        self.numbers += exact.numel()

    def result(self, name: str) -> SensitiveOperator:
        error = (self.difference / self.reference) ** 0.5 if self.reference else 0.0
        error = float("inf") if self.overflow else error
        share = self.flushed / max(1, self.numbers)
        return SensitiveOperator(name, self.kind, error, self.overflow, share, tuple(self.operators))


def _measure(model: nn.Module, task: Any, batches: Sequence[Any], precision: Precision) -> list[SensitiveOperator]:
    """Run the batches in float32, each module also in low precision; return the figures of all modules."""
    tallies = {name: _Tally(type(module).__name__) for name, module in model.named_modules() if name}
    busy = False  # inside a second run; its modules are not measured again

    def hook_for(tally: _Tally) -> Callable[..., None]:
        def compare(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal busy
            if busy:
                return
            busy = True
            try:
                with torch.autocast(precision.device.type, precision.dtype), _Overflows() as overflows:
                    lowered = module.forward(*tree_map(_copy, args), **tree_map(_copy, kwargs))
            finally:
                busy = False
            tally.operators |= overflows.operators
            for exact, low in zip(tree_leaves(output), tree_leaves(lowered), strict=False):
                if isinstance(exact, Tensor) and isinstance(low, Tensor) and exact.is_floating_point():
                    if exact.shape == low.shape:
                        tally.add(exact, low)

        return compare

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook_for(t), with_kwargs=True) for name, t in tallies.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                task.loss_sum(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [tally.result(name) for name, tally in tallies.items() if tally.numbers]


def _copy(value: Any) -> Any:
    """Return what a module may change in place without harm to the float32 run."""
    return value.clone() if isinstance(value, Tensor) else value


def _innermost(measured: list[SensitiveOperator], limits: Limits) -> list[SensitiveOperator]:
    """Return those beyond a limit that have none beyond it inside them."""
    bad = [m for m in measured if not m.error <= limits.error or m.flushed > limits.flushed or m.overflow]
    return [m for m in bad if not any(other.name.startswith(f"{m.name}.") for other in bad)]


class _Overflows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that make numbers which are not finite, in low precision, from finite ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if _is_low(t)]
        if made and not all(bool(t.isfinite().all()) for t in made):
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
            if all(bool(t.isfinite().all()) for t in given):
                name = str(func).removeprefix("aten.").partition(".")[0]
                if name not in _FILLS:
                    self.operators[name] = None
        return result


def _is_low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
