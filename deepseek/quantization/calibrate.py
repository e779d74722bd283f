"""Runs a model over calibration batches and watches the inputs of its layers. Not here: what follows from them."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepseek.errors import QuantizationError
from deepseek.quantization.observers import Histogram
from deepseek.quantization.report import ratio_db

Batch = Tensor | Mapping[str, Any] | Sequence[Any]
"""One tensor, a dict of tensors by the names of `forward`, or its positional arguments."""

CalibrationData = Iterable[Batch]


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
                "static quantization needs calibration data",
                wanted="an iterable of batches: dicts of tensors, tensors, or tuples of arguments",
                fix="pass calibration_data=..., or use method='dynamic', which needs none",
            )
        return iter([])
    if needed:
        warnings.warn(
            "no calibration data: ranges come from the model's example_inputs, which are no real data; "
            "pass calibration_data for a usable static model",
            stacklevel=4,
        )
    return iter([cast(Any, model).example_inputs(batch_size=4)])


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Call `model` with what its `forward` takes of `batch` (labels are left out), on the model's device.

    Raises QuantizationError if a dict has none of the names.
    """
    parameters = inspect.signature(model.forward).parameters
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    if isinstance(batch, Tensor):
        return model(batch.to(device))
    if isinstance(batch, Mapping):
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        known = {name: value for name, value in batch.items() if open_ended or name in parameters}
        if not known:
            raise QuantizationError(
                "a calibration batch has no input of the model", found=sorted(batch), wanted=list(parameters)
            )
        return model(**{name: _to(value, device) for name, value in known.items()})
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return model(*(_to(value, device) for value in (batch if open_ended else batch[: len(positional)])))


def observe_inputs(model: nn.Module, names: Iterable[str], batches: Iterable[Batch]) -> dict[str, Histogram]:
    """Run `model` over `batches` and return a histogram of the input of each named layer."""
    histograms = {name: Histogram(name) for name in names}
    hooks = {name: _watch(histogram) for name, histogram in histograms.items()}
    with _hooked(model, hooks), torch.no_grad():
        count = 0
        for batch in batches:
            call_model(model, batch)
            count += 1
    if count == 0:
        raise QuantizationError("the calibration data has no batches", fix="pass an iterable with at least one batch")
    return histograms


def output_ratios(model: nn.Module, replacements: Mapping[str, nn.Module], batch: Batch) -> dict[str, float]:
    """Return, for each replacement, the dB by which its output differs from the layer's own on the same input.

    Layers that the batch does not reach are left out.
    """
    powers: dict[str, tuple[float, float]] = {}
    with _hooked(model, {name: _compare(name, layer, powers) for name, layer in replacements.items()}), torch.no_grad():
        call_model(model, batch)
    return {name: ratio_db(signal, noise) for name, (signal, noise) in powers.items()}


def first_and_all(batches: Iterator[Batch]) -> tuple[Batch | None, Iterator[Batch]]:
    """Return the first batch, kept, and an iterator over all of them."""
    first = next(batches, None)
    return first, iter([]) if first is None else itertools.chain([first], batches)


_Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]


@contextlib.contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, _Hook]) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(histogram: Histogram) -> _Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        histogram.observe(args[0] if args else kwargs["input"])

    return hook


def _compare(name: str, layer: nn.Module, powers: dict[str, tuple[float, float]]) -> _Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        exact = output.to(torch.float64)
        noise = float((exact - layer(args[0] if args else kwargs["input"])).square().sum())
        before = powers.get(name, (0.0, 0.0))
        powers[name] = (before[0] + float(exact.square().sum()), before[1] + noise)

    return hook


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
