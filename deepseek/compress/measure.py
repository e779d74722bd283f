"""One form of a model in numbers: what its task says of it, bytes on disk, time for one sample.

Not here: making the form (`forms`), and other runtimes than eager (`deepseek.export.runtimes`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.evaluate.latency import measure, measure_generation
from deepseek.models.generation import CausalLanguageModel
from deepseek.tasks.inputs import input_names
from deepseek.tasks.task import Task, eval_mode, evaluate

_MOST_RUNS = 400


def figures_of(model: nn.Module, batches: Iterable[Any], task: Task) -> dict[str, float]:
    """Return what the task measures of `model` on `batches`; a model in 16-bit floats is given such inputs."""
    with _inputs_cast(model):
        return evaluate(model, batches, task)


def bytes_on_disk(model: nn.Module) -> int:
    """Return the size of the model's weights as a file, as a bundle stores them: tied tensors once."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if not tensor.numel() or place not in seen:
            state[name] = tensor.detach().contiguous()
        seen.add(place)
    with tempfile.TemporaryDirectory(prefix="deepseek-") as folder:
        path = Path(folder) / "model.safetensors"
        save_file(state, path)
        return path.stat().st_size


def sample_inputs(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Return the inputs of one sample: those tensors of a batch's first row that the model has names for.

    Where a batch lacks what the model needs, the model's own `example_inputs` serve. Raises ConfigError without them.
    """
    names = input_names(type(model))
    if isinstance(batch, Mapping):
        rows = {key: value[:1] for key, value in batch.items() if key in names.known and isinstance(value, Tensor)}
        if rows and names.required <= rows.keys():
            return rows
    if not hasattr(model, "example_inputs"):
        raise ConfigError(
            "no sample to time the model with",
            found=f"keys {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__,
            wanted=f"the inputs of {type(model).__name__}: {', '.join(sorted(names.required))}",
        )
    example: dict[str, Tensor] = model.example_inputs(batch_size=1)  # type: ignore[operator]  # a template's method
    return example


def eager_latency(model: nn.Module, inputs: Mapping[str, Tensor], seconds: float = 0.3) -> dict[str, float]:
    """Return `p50` and `p99` of the milliseconds that one call takes in eager PyTorch.

    Of three bursts the fastest counts: what else the machine does may slow one of them down.
    """
    with _inputs_cast(model), eval_mode(model), torch.no_grad():
        one = _Eager(model)
        bursts = [measure(one, inputs, seconds=seconds / 3, warmup=1, max_runs=_MOST_RUNS // 3) for _ in range(3)]
    best = min(bursts, key=lambda burst: burst.p50_ms)
    return {"p50": best.p50_ms, "p99": best.p99_ms}


class _Eager:
    """A model as something that can be timed. Other than `EagerRuntime` it takes whatever the model takes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        return self._model(**inputs)


def generation_times(model: nn.Module, batch: Any, prompt: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Return `prefill_ms` and `token_ms` of a language model that generates; empty for any other model."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if ids is None or not isinstance(model, CausalLanguageModel):
        return {}
    context = getattr(getattr(model, "config", None), "max_length", None) or 1 << 30
    new_tokens = max(2, min(new_tokens, context // 2))
    start = ids[0, : max(1, min(prompt, context - new_tokens))].tolist()
    return measure_generation(model, start, new_tokens, repeats)


@contextlib.contextmanager
def _inputs_cast(model: nn.Module) -> Iterator[None]:
    """Give a model whose floating-point weights are all of 16 bits its floating-point inputs in that format."""
    found = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if found not in ({torch.bfloat16}, {torch.float16}):
        yield
        return
    (dtype,) = found

    def cast(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(_half(value, dtype) for value in args), {key: _half(value, dtype) for key, value in kwargs.items()}

    handle = model.register_forward_pre_hook(cast, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _half(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
