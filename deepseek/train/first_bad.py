"""Which operator made the first NaN or infinity: a bad step run again, from the random state it began with.

    bad = find_first_bad(model, task, batches, precision, seed_state)
    print(bad)
    forward pass, micro-batch 0: aten::mm in blocks.3.attention.query
      inputs: self float16 (64, 128) from -812 to 797; mat2 float16 (128, 128) from -96.5 to 104
      output: float16 (64, 128) from -6.55e+04 to 6.55e+04, 0.0122 of it not finite

Weights, gradients, buffers, optimizer states and random numbers are left as they were. The step runs eagerly, slowly.
Not here: when a step counts as bad and what is done then (`step.py`, `loop.py`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.checkpoint.training_state import restore_model, restore_random_state
from deepseek.checkpoint.tree import join_tree, split_tree
from deepseek.errors import CheckpointError, DataError
from deepseek.files import atomic_folder
from deepseek.optim.precision import Precision
from deepseek.tasks.task import Task, to_device
from deepseek.train.finite_trace import FiniteTrace, Layers, Origin, TensorRange, is_finite, is_float, range_of
from deepseek.train.untouched import taken_back, untouched

Where = Literal["forward", "backward", "batch", "weights", "buffers", "norm", "update", "nowhere"]

_TITLES = {
    "forward": "forward pass",
    "backward": "backward pass",
    "batch": "the batch itself, before anything ran",
    "weights": "a weight, before anything ran",
    "buffers": "a buffer, before anything ran",
    "norm": "the norm of the gradients, all of them finite",
    "update": "the optimizer's update",
    "nowhere": "nothing found",
}
_SHOWN = 4  # inputs named in the message


@dataclass(frozen=True)
class BadOperator:
    """The first operator whose output is not finite while its inputs are; `str()` says it in three lines.

    `where` is the part of the step; `layer` the path of the module (empty: outside all, in the task's loss), or the
    name of the tensor of the batch, weight or buffer; `operator` torch's name for it, in the backward pass with the
    operator it is the gradient of.
    """

    where: Where
    layer: str = ""
    operator: str = ""
    dtype: str = ""
    inputs: tuple[TensorRange, ...] = ()
    output: TensorRange | None = None
    micro_batch: int = 0

    @property
    def found(self) -> bool:
        """Whether an operator or tensor was found; if not, the step is finite when it runs eagerly."""
        return self.where != "nowhere"

    def __str__(self) -> str:
        if not self.found:
            return (
                "nothing found: run again, loss and gradients are finite\n"
                "  the step is bad only when compiled, or its operators do not repeat their results\n"
                "  compare with compile: false"
            )
        place = self.layer or ("the task's loss" if self.operator else "")
        what = f"{self.operator} in {place}" if self.operator else place
        lines = [f"{_TITLES[self.where]}, micro-batch {self.micro_batch}: {what}"]
        shown = sorted(self.inputs, key=lambda found: (-found.bad, -max(abs(found.low), abs(found.high))))[:_SHOWN]
        more = f"; and {len(self.inputs) - _SHOWN} more" if len(self.inputs) > _SHOWN else ""
        lines.append("  inputs: " + ("; ".join(map(str, shown)) or "none") + more)
        lines.append(f"  output: {str(self.output).strip() if self.output is not None else 'unknown'}")
        return "\n".join(lines)


def find_first_bad(
    model: nn.Module,
    task: Task,
    batches: Sequence[Any],
    precision: Precision,
    seed_state: dict[str, Any] | None = None,
    *,
    optimizer: Optimizer | None = None,
    clip: Callable[[list[Tensor]], Tensor] | None = None,
    loss_scale: float = 1.0,
) -> BadOperator:
    """Run the micro-batches of one step again; return the first operator that made a value that is not finite.

    `seed_state` is what `random_state()` returned as the step began (None: the present one), `loss_scale` the scaler's.
    With `optimizer` the update is tried too, on gradients that `clip` has scaled, and taken back.
    """
    batches = [to_device(batch, precision.device) for batch in batches]
    with contextlib.ExitStack() as stack:
        stack.enter_context(untouched(model))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if seed_state is not None:
            restore_random_state(seed_state)
        layers = Layers(model)
        stack.enter_context(layers.watch())
        trace = FiniteTrace(layers)
        trace.seed("weights", dict(model.named_parameters()), masks=False)
        trace.seed("buffers", dict(model.named_buffers()), masks=True)
        share = loss_scale / max(1, sum(task.count(batch) for batch in batches))
        for number, batch in enumerate(batches):
            trace.seed("batch", _tensors_of(batch), masks=True)
            trace.part = "forward"
            with trace, precision.autocast():
                loss = task.loss_sum(model, batch)
            if not math.isfinite(float(loss.detach())):
                return _report("forward", trace.origin(loss), number, loss)
            trace.part = "backward"
            with trace:
                loss.backward(torch.full_like(loss, share))  # type: ignore[no-untyped-call]
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    return _report("backward", trace.origin(parameter.grad), number, parameter.grad, name)
        return _in_update(model, trace, optimizer, clip, loss_scale)


def _report(where: Where, origin: Origin | None, number: int, tensor: Tensor, name: str = "") -> BadOperator:
    if origin is None:  # made where torch shows no operator
        found = range_of("", tensor)
        return BadOperator(where, name, "", found.dtype, (), found, number)
    operator = f"{origin.operator} of {origin.node}" if origin.node else origin.operator
    part: Any = origin.part
    return BadOperator(part, origin.layer, operator, origin.output.dtype, origin.inputs, origin.output, number)


def _in_update(
    model: nn.Module,
    trace: FiniteTrace,
    optimizer: Optimizer | None,
    clip: Callable[[list[Tensor]], Tensor] | None,
    loss_scale: float,
) -> BadOperator:
    """Look at what comes after the gradients: their norm, and the update; weights and states are put back."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        gradient.div_(loss_scale)
    norm = nn.utils.get_total_norm(list(gradients.values()))
    if not math.isfinite(float(norm)):
        name = max(gradients, key=lambda one: float(gradients[one].abs().max()))
        ranges = (range_of("gradient", gradients[name]),)
        return BadOperator("norm", name, "", ranges[0].dtype, ranges, range_of("norm", norm))
    if optimizer is None:
        return BadOperator("nowhere")
    if clip is not None:
        copy.deepcopy(clip)([p for p in model.parameters() if p.grad is not None])
    trace.part = "update"
    with taken_back(optimizer):
        with trace, torch.no_grad():
            optimizer.step()
        for name, parameter in model.named_parameters():
            if is_float(parameter) and not is_finite(parameter):
                return replace(_report("update", trace.origin(parameter), 0, parameter), layer=name)
    return BadOperator("nowhere")


def _tensors_of(batch: Any, path: str = "") -> dict[str, Tensor]:
    """Return the tensors of any nesting of dicts, lists and tuples by path, such as `inputs` or `images/0`."""
    if isinstance(batch, Tensor):
        return {path: batch}
    parts: Any = ()
    if isinstance(batch, Mapping):
        parts = batch.items()
    elif isinstance(batch, list | tuple):
        parts = enumerate(batch)
    return {name: t for key, part in parts for name, t in _tensors_of(part, f"{path}/{key}".lstrip("/")).items()}


def save_bad_step(
    folder: Path,
    model: nn.Module,
    batches: Sequence[Any],
    seed_state: dict[str, Any],
    bad: BadOperator,
    *,
    step: int,
    precision: Precision,
    loss_scale: float = 1.0,
) -> Path:
    """Write `folder/bad_step`: batches, random state, weights and what was found; return its path.

    Raises StorageError when the disk refuses, DataError for batches that hold more than tensors and plain values.
    """
    target = folder / "bad_step"
    try:
        plain, tensors = split_tree({"batches": list(batches), "random": seed_state})
    except CheckpointError as error:
        raise DataError("this batch can't be stored", found=error.problem, wanted=error.wanted) from error
    report = {
        "format_version": 1,
        "step": step,
        "precision": precision.name,
        "loss_scale": loss_scale,
        "found": str(bad),
        "bad": asdict(bad),
        "inputs": plain,
    }
    text = json.dumps(_finite(report), indent=2, allow_nan=False)
    with atomic_folder(target, replace=True) as temporary:
        save_file(_plain_tensors(tensors), temporary / "batch.safetensors")
        save_file(_plain_tensors(split_tree(model.state_dict())[1]), temporary / "weights.safetensors")
        (temporary / "report.json").write_text(text + "\n", encoding="utf-8")
    return target


def replay(folder: str | Path, model: nn.Module, task: Task, precision: Precision | None = None) -> BadOperator:
    """Run the step that `save_bad_step` stored in `folder` again; return what is found now.

    The stored weights are loaded into `model`. `precision` defaults to the run's, on the model's device. Raises
    DataError when the folder holds no bad step, CheckpointError when it is of another model.
    """
    folder = Path(folder)
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        inputs = join_tree(report["inputs"], load_file(folder / "batch.safetensors"))
        weights = load_file(folder / "weights.safetensors")
        name, loss_scale = report["precision"], float(report["loss_scale"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        wanted = "the folder bad_step of a run"
        raise DataError(f"{folder} holds no bad step", found=error, wanted=wanted) from error
    restore_model(model, weights)
    if precision is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        precision = Precision(name, device)
    return find_first_bad(model, task, inputs["batches"], precision, inputs["random"], loss_scale=loss_scale)


def _plain_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as the format wants them: on the CPU, each with memory of its own."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _finite(value: Any) -> Any:
    """Replace what JSON lacks (NaN, infinities) by null, all the way down."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
