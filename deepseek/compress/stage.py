"""The compress stage: a bundle in, a smaller bundle out, both measured in quality, bytes and time.

Nothing is written if quality falls by more than the config allows. Not here: how to quantize (`deepseek.quantization`).
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors.torch import save_model
from torch import Tensor, nn

from deepseek import bundle as bundles
from deepseek.compress.config import CompressConfig
from deepseek.errors import ConfigError, QuantizationError
from deepseek.evaluate.language import perplexity
from deepseek.evaluate.latency import measure_generation
from deepseek.models.generation import CausalLanguageModel
from deepseek.quantization.config import QuantConfig
from deepseek.quantization.quantize import quantize_with_report
from deepseek.quantization.report import QuantReport
from deepseek.registry import TASKS, resolve
from deepseek.tasks.task import Batch, Task


class CompressReport(NamedTuple):
    """What the stage did. Each row: `form`, `bytes` (of the weights on disk), `val_loss`, `perplexity`, and for
    language models `prefill_ms` and `token_ms` {median, p10, p90}."""

    path: Path
    rows: tuple[dict[str, Any], ...]
    chosen: str
    """The form that was written."""
    quantization: QuantReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them (without the path)."""
        return {"rows": list(self.rows), "chosen": self.chosen, "layers": self.quantization.to_dict()}


def compress_bundle(
    bundle_path: str | Path,
    out_path: str | Path,
    batches: Iterable[Batch],
    *,
    config: CompressConfig | None = None,
    calibration_data: Iterable[Batch] | None = None,
) -> CompressReport:
    """Quantize the bundle at `bundle_path` and write the result to `out_path`.

    `batches` are validation batches, gone through once for each form (fp32, bf16, the chosen one): a list, or anything
    that can be iterated again. `calibration_data` is for `static`; without it, `batches` serve. Raises ConfigError for
    an iterator, BundleError for a bundle that can't be read, and QuantizationError if perplexity grows by more than
    `max_perplexity_increase`; then nothing is written.
    """
    config = config or CompressConfig()
    if iter(batches) is batches:
        raise ConfigError(
            "the batches can be read only once", found=type(batches).__name__, fix="pass a list of batches"
        )
    bundle = bundles.load(bundle_path, device="cpu")
    task = cast(Task, cast(Any, resolve(TASKS, bundle.config.task, "task"))())
    quant_config = config.quant_config()
    data = None
    if quant_config.mode == "static":
        data = itertools.islice(batches if calibration_data is None else calibration_data, config.calibration_batches)
    measure = _Measure(batches, task, config)
    half, _ = quantize_with_report(bundle.model, QuantConfig(weight_bits=16))
    rows = [measure.row("fp32", bundle.model), measure.row("bf16", half)]
    del half
    compressed, report = quantize_with_report(bundle.model, quant_config, cast(Any, data))
    chosen = quant_config.describe()
    if config.method != "bf16":
        rows.append(measure.row(chosen, compressed))
    _check_quality(rows[0], rows[-1], config.max_perplexity_increase, report)
    result = CompressReport(Path(out_path), tuple(rows), chosen, report)
    bundles.save(
        compressed,
        out_path,
        tokenizer=bundle.tokenizer,
        task=bundle.config.task,
        report={**_earlier_report(bundle.path), "compress": result.to_dict()},
    )
    return result


class _Measure:
    """Measures forms of one model on the same batches and the same prompt."""

    def __init__(self, batches: Iterable[Batch], task: Task, config: CompressConfig) -> None:
        self._batches, self._task, self._config = batches, task, config

    def row(self, form: str, model: nn.Module) -> dict[str, Any]:
        row = {"form": form, "bytes": _bytes_on_disk(model), **perplexity(model, self._batches, self._task)}
        ids: Tensor | None = next(iter(self._batches)).get("input_ids")
        if ids is not None and isinstance(model, CausalLanguageModel):
            config = self._config
            context = getattr(getattr(model, "config", None), "max_length", None) or 1 << 30
            new_tokens = max(2, min(config.latency_tokens, context // 2))
            prompt = ids[0, : max(1, min(config.latency_prompt, context - new_tokens))].tolist()
            row |= measure_generation(model, prompt, new_tokens, config.latency_repeats)
        return row


def _bytes_on_disk(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory(prefix="deepseek-") as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, str(path))
        return path.stat().st_size


def _check_quality(before: Mapping[str, Any], after: Mapping[str, Any], allowed: float, report: QuantReport) -> None:
    increase = math.expm1(min(after["val_loss"] - before["val_loss"], 700.0))
    if not increase <= allowed:
        worst = ", ".join(layer.name for layer in report.worst(3)) or "none"
        raise QuantizationError(
            f"the {after['form']} model is too much worse; nothing was written",
            found=f"perplexity {after['perplexity']:.4g} after {before['perplexity']:.4g} ({increase:+.1%})",
            wanted=f"at most {allowed:+.1%} (max_perplexity_increase)",
            fix=f"use method: weight_only, name the layers that lose most in skip ({worst}), or allow more",
        )


def _earlier_report(path: Path) -> dict[str, Any]:
    report = path / "report.json"
    if not report.is_file():
        return {}
    values = json.loads(report.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}
