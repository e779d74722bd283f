"""Runs a model over calibration batches and watches its layers. Not here: what follows from what they saw.

Nothing is kept for each batch: what a layer saw goes into sums, counts or a bounded number of rows.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.errors import DeepSeekError, QuantizationError
from deepseek.quantization.observers import Histogram
from deepseek.quantization.report import ratio_db

Batch = Tensor | Mapping[str, Any] | Sequence[Any]
"""One tensor, a dict of tensors by the names of `forward`, or its positional arguments."""

CalibrationData = Iterable[Batch]

_SAMPLE_BATCHES = 8
_SAMPLE_BYTES = 64 << 20


def calibration_batches(model: nn.Module, data: CalibrationData | None, *, needed: bool) -> Iterator[Batch]:
    """Return an iterator over `data`, or over the model's own example inputs where there is none.

    Those are made-up values: a warning says so if `needed`. Raises QuantizationError if needed and neither is there.
    """
    if isinstance(data, Tensor | Mapping):
        return iter([data])
    if data is not None:
        return iter(data)
    if not hasattr(model, "example_inputs"):
        if needed:
            raise QuantizationError(
                "this quantization needs calibration data",
                wanted="an iterable of batches: dicts of tensors, tensors, or tuples of arguments",
                fix="pass calibration_data=..., or use method='dynamic', which needs none",
            )
        return iter([])
    if needed:
        warnings.warn(
            "no calibration data: the model's example_inputs serve, which are no real data; "
            "pass calibration_data for a usable model",
            stacklevel=4,
        )
    return iter([cast(Any, model).example_inputs(batch_size=4)])


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Call `model` with what its `forward` takes of `batch` (labels are left out), on the model's device.

    Raises QuantizationError if a dict has none of the names.
    """
    args, kwargs = model_arguments(model, batch)
    return model(*args, **kwargs)


def model_arguments(model: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and named arguments with which `call_model` calls `model`."""
    parameters = inspect.signature(model.forward).parameters
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    if isinstance(batch, Tensor):
        return (batch.to(device),), {}
    if isinstance(batch, Mapping):
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        known = {name: value for name, value in batch.items() if open_ended or name in parameters}
        if not known:
            raise QuantizationError(
                "a calibration batch has no input of the model", found=sorted(batch), wanted=list(parameters)
            )
        return (), {name: _to(value, device) for name, value in known.items()}
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return tuple(_to(value, device) for value in (batch if open_ended else batch[: len(positional)])), {}


def observe_inputs(model: nn.Module, names: Iterable[str], batches: Iterable[Batch]) -> dict[str, Histogram]:
    """Run `model` over `batches` and return a histogram of the input of each named layer.

    Raises QuantizationError for no batches, a batch that does not fit, or values that are not finite.
    """
    histograms = {name: Histogram(name) for name in names}
    watch_layers(model, {name: _watch(histogram) for name, histogram in histograms.items()}, batches)
    return histograms


def output_powers(
    model: nn.Module, replacements: Mapping[str, nn.Module], batches: Iterable[Batch]
) -> dict[str, tuple[float, float]]:
    """Return, for each replacement, the power of the layer's output and of the difference from it on equal inputs.

    Layers that the batches do not reach are left out.
    """
    powers: dict[str, tuple[float, float]] = {}
    watch_layers(model, {name: _compare(name, layer, powers) for name, layer in replacements.items()}, batches)
    return powers


def output_ratios(model: nn.Module, replacements: Mapping[str, nn.Module], batch: Batch) -> dict[str, float]:
    """Return, for each replacement, the dB by which its output differs from the layer's own on the same input.

    Layers that the batch does not reach are left out.
    """
    powers = output_powers(model, replacements, [batch])
    return {name: ratio_db(signal, noise) for name, (signal, noise) in powers.items()}


def input_rows(model: nn.Module, names: Iterable[str], batches: Iterable[Batch], most: int) -> dict[str, Tensor]:
    """Return up to `most` rows of each named linear layer's input, fp32 `(rows, in_features)`, spread over batches.

    Layers that the batches do not reach are left out.
    """
    rows = {name: _Rows(most) for name in names}
    watch_layers(model, {name: kept.hook for name, kept in rows.items()}, batches)
    return {name: kept.rows for name, kept in rows.items() if kept.rows is not None}


def watch_layers(model: nn.Module, hooks: Mapping[str, Hook], batches: Iterable[Batch]) -> None:
    """Run `model` over `batches`, calling each hook with what the layer of its name took and gave.

    Raises QuantizationError if there are no batches or one does not fit the model.
    """
    number = 0
    with _hooked(model, hooks), torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            _run(model, batch, number)
    if number == 0:
        raise QuantizationError("the calibration data has no batches", fix="pass an iterable with at least one batch")


def first_and_all(batches: Iterator[Batch]) -> tuple[Batch | None, Iterator[Batch]]:
    """Return the first batch, kept, and an iterator over all of them."""
    first = next(batches, None)
    return first, iter([]) if first is None else itertools.chain([first], batches)


def sample_and_all(batches: Iterator[Batch]) -> tuple[list[Batch], Iterator[Batch]]:
    """Return the first batches, at most 8 and of 64 MiB together but always one, kept, and an iterator over all."""
    kept: list[Batch] = []
    size = 0
    for batch in batches:
        kept.append(batch)
        size += sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        if len(kept) == _SAMPLE_BATCHES or size >= _SAMPLE_BYTES:
            break
    return kept, itertools.chain(kept, batches)


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input of a layer from what a hook was given."""
    found: Tensor = args[0] if args else kwargs["input"]
    return found


class _Rows:
    """A bounded, evenly spaced sample of the rows that a linear layer saw."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.rows: Tensor | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        new = layer_input(args, kwargs).flatten(0, -2).to(torch.float32)
        both = new if self.rows is None else torch.cat([self.rows, new])
        if len(both) > self._most:
            both = both[torch.linspace(0, len(both) - 1, self._most).long()]
        self.rows = both


def _run(model: nn.Module, batch: Batch, number: int) -> None:
    try:
        call_model(model, batch)
    except DeepSeekError:
        raise
    except Exception as error:
        name, module, found = _where(model, batch)
        raise QuantizationError(
            f"calibration batch {number} does not fit the model at {name}",
            found=f"{found} ({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})",
            wanted=_wanted(module),
            fix="pass batches as the model's forward takes them",
        ) from error


def _where(model: nn.Module, batch: Batch) -> tuple[str, nn.Module, str]:
    """Return the innermost module that fails on `batch`, its name in words, and what it was given."""
    running: list[tuple[str, nn.Module, str]] = [("its input", model, _shapes(batch))]
    handles: list[Any] = []

    def starts(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, kwargs: running.append((name, module, _shapes((args, kwargs))))

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(starts(f"'{name}'" if name else "its input"), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        with torch.no_grad(), contextlib.suppress(Exception):
            call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return running[-1]


def _shapes(values: Any) -> str:
    found = [f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return "shape " + ", ".join(found) if found else f"no tensor but {type(values).__name__}"


def _wanted(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"shape (..., {module.in_features}), floating point"
    if isinstance(module, nn.modules.conv._ConvNd):
        space = ", ".join(["size"] * len(module.kernel_size))
        return f"shape (batch, {module.in_channels}, {space}), floating point"
    if isinstance(module, nn.Embedding):
        return f"whole numbers from 0 to {module.num_embeddings - 1}"
    names = ", ".join(inspect.signature(module.forward).parameters)
    return f"what {type(module).__name__}.forward({names}) takes"


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]


@contextlib.contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(histogram: Histogram) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        histogram.observe(layer_input(args, kwargs))

    return hook


def _compare(name: str, layer: nn.Module, powers: dict[str, tuple[float, float]]) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        exact = output.to(torch.float64)
        noise = float((exact - layer(layer_input(args, kwargs))).square().sum())
        before = powers.get(name, (0.0, 0.0))
        powers[name] = (before[0] + float(exact.square().sum()), before[1] + noise)

    return hook


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
