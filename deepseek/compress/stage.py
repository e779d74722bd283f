"""The compress stage: a bundle in, a smaller bundle out, both measured in quality, bytes and time.

Nothing is written if the task's main figure falls by more than the config allows. Not here: how to quantize
(`deepseek.quantization`), and the search for what meets a budget (`deepseek.compress.search`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deepseek import bundle as bundles
from deepseek.bundle import Bundle
from deepseek.compress.config import CompressConfig
from deepseek.compress.forms import make_form
from deepseek.compress.measure import bytes_on_disk, eager_latency, figures_of, generation_times, sample_inputs
from deepseek.compress.quality import Metric, drop, main_metric, passes
from deepseek.compress.recovery import learned_int8
from deepseek.compress.sensitivity import search_mix
from deepseek.errors import ConfigError, QuantizationError
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.report import QuantReport
from deepseek.tasks.build import build_task
from deepseek.tasks.task import Batch, Task

Say = Callable[[str], None]
"""Is told what is done next, in plain words."""


class CompressReport(NamedTuple):
    """What the stage did.

    Each row: `form`, `bytes` (of the weights on disk), `figures` (what the task measures), `drop` of the main figure as
    a part of the original's (below zero: better), `latency_ms` {p50, p99} of one sample in eager PyTorch; for language
    models also `val_loss`, `perplexity`, `prefill_ms` and `token_ms` {median, p10, p90}.
    """

    path: Path
    rows: tuple[dict[str, Any], ...]
    chosen: str
    """The form that was written."""
    quantization: QuantReport
    metric: Metric
    """The figure that decided."""
    mix: tuple[dict[str, Any], ...] = ()
    """The layers' sensitivity, where `mixed` looked for it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them (without the path)."""
        values = {"rows": list(self.rows), "chosen": self.chosen, "metric": self.metric._asdict()}
        layers = {"layers": self.quantization.to_dict()}
        return {**values, **layers, **({"mix": list(self.mix)} if self.mix else {})}


def compress_bundle(
    bundle_path: str | Path,
    out_path: str | Path,
    batches: Iterable[Batch],
    *,
    config: CompressConfig | None = None,
    calibration_data: Iterable[Batch] | None = None,
    train_data: Any = None,
    task: Task | None = None,
    say: Say | None = None,
) -> CompressReport:
    """Bring the bundle at `bundle_path` into another number format and write the result to `out_path`.

    `batches` are validation batches, gone through once for each form (fp32, bf16, the chosen one): a list, or anything
    that can be iterated again. `calibration_data` is for `static`; without it, `batches` serve. `train_data` (what
    `Trainer` takes) is for `qat`. `task` is by default the bundle's own. Raises ConfigError for an iterator and for
    `qat` without data, BundleError for a bundle that can't be read, and QuantizationError if the task's main figure
    falls by more than the config allows; then nothing is written.
    """
    config, say = config or CompressConfig(), say or (lambda words: None)
    if iter(batches) is batches:
        raise ConfigError(
            "the batches can be read only once", found=type(batches).__name__, fix="pass a list of batches"
        )
    bundle = bundles.load(bundle_path, device="cpu")
    task = task or build_task({"name": bundle.config.task, **bundle.config.task_settings})
    measure = Measure(batches, task, config)
    say("measuring the original")
    rows = [measure.row("fp32", bundle.model)]
    metric = main_metric(rows[0]["figures"])
    say("measuring bf16")
    half, report = make_form(bundle.model, QuantConfig(weight_bits=16), [])
    rows.append(measure.row("bf16", half))
    chosen, compressed = "bf16", half
    mix: tuple[dict[str, Any], ...] = ()
    if config.method != "bf16":
        say(f"making the form {config.method}")
        data = batches if calibration_data is None else calibration_data
        compressed, report, chosen, mix = _formed(bundle.model, task, batches, data, train_data, config, metric)
        say(f"measuring {chosen}")
        rows.append(measure.row(chosen, compressed))
    for row in rows:
        row["drop"] = drop(metric, rows[0]["figures"], row["figures"], relative=True)
    _check_quality(metric, rows[0], rows[-1], config, report)
    result = CompressReport(Path(out_path), tuple(rows), chosen, report, metric, mix)
    save_like(bundle, compressed, out_path, {"compress": result.to_dict()})
    return result


def save_like(bundle: Bundle, model: nn.Module, out_path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write `model` as a bundle that is in all else as `bundle`; `report` is added to what its report says."""
    own = bundle.config
    return bundles.save(
        model,
        out_path,
        tokenizer=bundle.tokenizer,
        task=own.task,
        task_settings=own.task_settings,
        labels=own.labels,
        pipeline=bundle.pipeline_stages,
        report={**_earlier_report(bundle.path), **report},
        profile=bundle.profile,
    )


_Formed = tuple[nn.Module, QuantReport, str, tuple[dict[str, Any], ...]]


def _formed(
    model: nn.Module,
    task: Task,
    batches: Iterable[Any],
    calibration: Iterable[Any],
    train_data: Any,
    config: CompressConfig,
    metric: Metric,
) -> _Formed:
    """Return the compressed model, what happened to its layers, what it is called, and the layers' sensitivity."""
    quant_config = config.quant_config()
    if config.method == "qat":
        learned, report = learned_int8(model, task, train_data, calibration, config)
        return learned, report, quant_config.describe(), ()
    if config.method == "mixed":
        mix = search_mix(model, task, batches, config.allowed_drop(metric.name), calibration=calibration, base=config)
        compressed, report = make_form(model, mix.config, calibration, config.calibration_batches)
        return compressed, report, mix.describe(), tuple(row._asdict() for row in mix.layers)
    compressed, report = make_form(model, quant_config, calibration, config.calibration_batches)
    return compressed, report, quant_config.describe(), ()


class Measure:
    """Measures forms of one model on the same batches and the same sample."""

    def __init__(self, batches: Iterable[Any], task: Task, config: CompressConfig) -> None:
        self._batches, self._task, self._config = batches, task, config
        self._first = next(iter(batches))

    def row(self, form: str, model: nn.Module) -> dict[str, Any]:
        """Return what is known of one form: see `CompressReport`."""
        figures, config = figures_of(model, self._batches, self._task), self._config
        row: dict[str, Any] = {"form": form, "bytes": bytes_on_disk(model), "figures": figures}
        row["latency_ms"] = eager_latency(model, sample_inputs(model, self._first))
        times = generation_times(
            model, self._first, config.latency_prompt, config.latency_tokens, config.latency_repeats
        )
        if times:
            row |= {"val_loss": figures["loss"], "perplexity": figures.get("perplexity"), **times}
        return row


def _check_quality(
    metric: Metric, before: Mapping[str, Any], after: Mapping[str, Any], config: CompressConfig, report: QuantReport
) -> None:
    allowed = config.allowed_drop(metric.name)
    old, new = before["figures"], after["figures"]
    if passes(metric, old, new, allowed):
        return
    lost = drop(metric, old, new, relative=True)
    worst = ", ".join(layer.name for layer in report.worst(3)) or "none"
    setting = "max_perplexity_increase" if config.max_drop is None and metric.name == "perplexity" else "max_drop"
    raise QuantizationError(
        f"the {after['form']} model is too much worse; nothing was written",
        found=f"{metric.name} {new.get(metric.name, float('nan')):.4g} after {old[metric.name]:.4g} ({lost:.1%} worse)",
        wanted=f"at most {allowed} worse ({setting})",
        fix=f"use method: weight_only or mixed, name the layers that lose most in skip ({worst}), or allow more",
    )


def _earlier_report(path: Path) -> dict[str, Any]:
    report = path / "report.json"
    if not report.is_file():
        return {}
    values = json.loads(report.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}
