"""Mixed precision by measurement: how much each layer loses alone in int8 or int4, and the mix that follows from it.

A layer's loss is the noise it puts into the model's output (signal-to-noise ratio) and, as far as time allows, what the
task's main figure loses. Layers are lowered in the order of least loss for each byte saved, and the longest beginning
of that order that keeps the quality is found by bisection on the whole model. No layer is kept high for its name or
kind: a detector's head stays in floating point because it measures badly.
Sources: Cai et al. 2020, "ZeroQ", arXiv:2001.00281 (sensitivity by layer and a Pareto order); Dong et al. 2019, "HAWQ",
arXiv:1905.03696 (mixed precision from independent layers).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepseek.compress.forms import quiet_form
from deepseek.compress.measure import bytes_on_disk, figures_of
from deepseek.compress.mix import LEVELS, LayerLoss, Level, Mix, lowering_order
from deepseek.compress.quality import drop, main_metric, passes
from deepseek.compress.units import Drop
from deepseek.errors import DeepSeekError, QuantizationError
from deepseek.nn.int8_swap import set_layer
from deepseek.quantization.calibrate import call_model
from deepseek.quantization.config import LayerSettings, QuantConfig
from deepseek.quantization.report import ratio_db
from deepseek.tasks.task import Task, eval_mode

if TYPE_CHECKING:
    from deepseek.compress.config import CompressConfig

_NOISE_BATCHES = 2


def search_mix(
    model: nn.Module,
    task: Task,
    batches: Iterable[Any],
    allowed: Drop,
    *,
    calibration: Iterable[Any] | None = None,
    base: CompressConfig,
    target: Callable[[nn.Module], bool] | None = None,
    original: dict[str, float] | None = None,
    seconds: float = 120.0,
) -> Mix:
    """Return the smallest mix of formats whose main figure is at most `allowed` worse than the model's.

    With `target` (is this model small, fast enough?), the mix that loses least among those that meet it. `seconds`
    bound the look at single layers; quality is held against `original`, by default the model's own figures. Raises
    QuantizationError where nothing passes, or no layer can be lowered.
    """
    before = original if original is not None else figures_of(model, batches, task)
    search = _MixSearch(model, task, batches, allowed, calibration or batches, base, before)
    losses = search.losses(LEVELS, time.monotonic() + seconds)
    order = lowering_order(losses)
    if not order:
        raise QuantizationError("no layer of the model has a lower format", found=type(model).__name__)
    return search.best(order, losses, target)


class _MixSearch:
    """The search over one model. Mixes that were made are remembered."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        batches: Iterable[Any],
        allowed: Drop,
        calibration: Iterable[Any],
        base: CompressConfig,
        before: dict[str, float],
    ) -> None:
        self.model, self.task, self.batches, self.allowed = model, task, batches, allowed
        self.calibration, self.base = calibration, base
        self.before, self.metric = before, main_metric(before)
        self._tried: dict[int, tuple[nn.Module, dict[str, float]]] = {}

    def losses(self, levels: Sequence[Level], deadline: float) -> list[LayerLoss]:
        """Return what each layer loses alone in each level: first all noise, then the figure, the worst first."""
        looked = list(islice(self.batches, _NOISE_BATCHES))
        plain = copy.deepcopy(self.model).eval()
        answers = [_outputs(plain, batch) for batch in looked]
        found: list[LayerLoss] = []
        donors: dict[tuple[str, str], dict[str, nn.Module]] = {}
        for level in levels:
            for name, parts, saved in self._lowered(level):
                if found and time.monotonic() > deadline:
                    break
                with _swapped(plain, parts):
                    noise = _ratio(answers, [_outputs(plain, batch) for batch in looked])
                found.append(LayerLoss(name, level.name, saved, noise, None))
                donors[name, level.name] = parts
        for place in sorted(range(len(found)), key=lambda place: found[place].sqnr_db):
            if time.monotonic() > deadline:
                break
            with _swapped(plain, donors[found[place].name, found[place].level]):
                figures = figures_of(plain, self.batches, self.task)
            found[place] = found[place]._replace(drop=drop(self.metric, self.before, figures, relative=True))
        return found

    def _lowered(self, level: Level) -> list[tuple[str, dict[str, nn.Module], int]]:
        """Return each layer that has this level: its name, the layer that takes its place under all its names, and the
        bytes it saves. Weights are quantized alone here; input ranges belong to the whole mix."""
        bits = level.settings.weight_bits or 8
        values = {key: value for key, value in level.settings.given().items() if key != "weight_bits"}
        config = QuantConfig(weight_bits=bits, method="weight_only", skip=self.base.skip, **values)
        try:
            lowered, report = quiet_form(self.model, config.replace(embeddings=self.base.embeddings), [])
        except DeepSeekError:
            return []  # no such format for this model
        rows = {row.name: row for row in report.layers}
        groups: dict[int, list[str]] = {}
        for name in rows:
            groups.setdefault(id(self.model.get_submodule(name).weight), []).append(name)
        return [
            (
                names[0],
                {name: lowered.get_submodule(name) for name in names},
                rows[names[0]].bytes_before - rows[names[0]].bytes_after,
            )
            for names in groups.values()
        ]

    def best(
        self,
        order: Sequence[LayerLoss],
        losses: Sequence[LayerLoss],
        target: Callable[[nn.Module], bool] | None,
    ) -> Mix:
        """Return the mix of the longest beginning of `order` that passes, or the shortest that meets `target`."""
        settings = {level.name: level.settings for level in LEVELS}

        def made(count: int) -> tuple[nn.Module, dict[str, float]]:
            if count not in self._tried:
                form, _ = quiet_form(
                    self.model, self._config(order[:count], settings), self.calibration, self.base.calibration_batches
                )
                self._tried[count] = (form, figures_of(form, self.batches, self.task))
            return self._tried[count]

        def good(count: int) -> bool:
            return passes(self.metric, self.before, made(count)[1], self.allowed)

        if target is None:
            count = _last(good, len(order))
        else:
            count = len(order) - _last(lambda fewer: target(made(len(order) - fewer)[0]), len(order) - 1, start=-1)
            count = min(count, len(order))
        if count == 0 or not good(count):
            raise QuantizationError(
                "no mix of formats keeps the quality",
                found=f"{self.metric.name} {made(max(1, count))[1].get(self.metric.name, math.nan):.4g} "
                f"after {self.before[self.metric.name]:.4g}",
                wanted=f"at most {self.allowed} worse",
                fix="allow more, or train: method qat",
            )
        form, figures = made(count)
        chosen = {step.name: step.level for step in order[:count]}
        rows = tuple(loss._replace(chosen=chosen.get(loss.name) == loss.level) for loss in losses)
        return Mix(self._config(order[:count], settings), rows, chosen, bytes_on_disk(form), figures)

    def _config(self, steps: Sequence[LayerLoss], settings: Mapping[str, LayerSettings]) -> QuantConfig:
        """Return the config of the mix: int8 with single layers lower, and those that stay high in `skip`."""
        chosen = {step.name: step.level for step in steps}
        names = _owners(self.model)
        lower: dict[str, LayerSettings] = {}
        kept: list[str] = []
        for name, group in names.items():
            level = chosen.get(name)
            if level is None:
                kept += group
            elif settings[level].weight_bits != 8:
                lower |= {one: settings[level] for one in group}
        values = self.base.replace(method=self._arithmetic).quant_config()
        return values.replace(skip=[*self.base.skip, *kept], layers=lower)

    @property
    def _arithmetic(self) -> str:
        convolutional = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in self.model.modules())
        return "static" if convolutional else "dynamic"


def _owners(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of all layers with a weight matrix, by the first name of each weight."""
    groups: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() >= 2:
            groups.setdefault(id(weight), []).append(name)
    return {names[0]: names for names in groups.values()}


def _last(holds: Callable[[int], bool], most: int, start: int = 0) -> int:
    """Return the largest number up to `most` for which `holds`, if it holds up to some number; `start` holds."""
    low, high = start, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@contextlib.contextmanager
def _swapped(model: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other layers into a model, and the old ones back."""
    old = {name: model.get_submodule(name) for name in parts}
    for name, part in parts.items():
        set_layer(model, name, part)
    try:
        yield
    finally:
        for name, part in old.items():
            set_layer(model, name, part)


def _outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    with eval_mode(model), torch.no_grad():
        return _floats(call_model(model, batch))


def _floats(answer: Any) -> list[Tensor]:
    if isinstance(answer, Tensor):
        return [answer.double()] if answer.is_floating_point() else []
    parts = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, tuple | list) else ()
    return [tensor for part in parts for tensor in _floats(part)]


def _ratio(exact: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]) -> float:
    """Return the signal-to-noise ratio in dB of the worst output tensor, over all batches."""
    worst = math.inf
    for place in range(len(exact[0])):
        signal = sum(float(answer[place].square().sum()) for answer in exact)
        noise = sum(float((one[place] - other[place]).square().sum()) for one, other in zip(exact, found, strict=True))
        worst = min(worst, ratio_db(signal, noise) if math.isfinite(noise) else -100.0)
    return worst
