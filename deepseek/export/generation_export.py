"""Generation models with their cache as inputs and outputs: a step in ONNX or OpenVINO IR that any program can loop.

Names are those of the field (optimum's): `input_ids`, `past_key_values.0.key` in, `logits`, `present.0.key` out; keys
and values are (batch, heads, past, head_dim), and `past` may be 0. Latent attention keeps one tensor a layer,
`past_key_values.0.latent` (batch, past, width). An encoder-decoder becomes two files: the encoder also gives each
layer's cross-attention keys and values (`present.0.encoder.key`), the decoder reads them
(`past_key_values.0.encoder.key`) beside its own (`past_key_values.0.decoder.key`). All rows are of one length.
Counterpart: https://huggingface.co/docs/optimum/exporters/onnx/overview. Not here: the loop (`generation_run.py`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deepseek.errors import ExportError
from deepseek.export.capture import capture
from deepseek.export.growing_cache import GrowingCache, layout_of
from deepseek.export.onnx_export import check_place, explanation, on_cpu_in_float32
from deepseek.export.onnx_file import write_onnx
from deepseek.export.onnx_translation import clean, translate
from deepseek.export.openvino_export import save_ir
from deepseek.export.parity import Check, compare
from deepseek.export.runtimes import EagerRuntime, OnnxRuntime, OpenVinoRuntime, Runtime
from deepseek.files import atomic_folder
from deepseek.lazy import require
from deepseek.models.generation import CausalLanguageModel
from deepseek.nn.int8_swap import int8_specs
from deepseek.nn.pre_norm_block import context_of

Format = Literal["onnx", "openvino"]
Axis = tuple[str | None, ...]

DECODER, ENCODER, CROSS_DECODER, SETTINGS = (
    "model",
    "encoder_model",
    "decoder_with_past_model",
    "generation_config.json",
)
_NAMES = {f"{stem}.{end}" for stem in (DECODER, ENCODER, CROSS_DECODER) for end in ("onnx", "xml", "bin")} | {SETTINGS}
_OPSET, _TOLERANCE, _INT8_TOLERANCE = 20, 1e-4, 1e-1
_TIME, _PAST, _CROSS = 3, 5, 7  # of the example: sizes that nothing else has


class GenerationReport(NamedTuple):
    """What was written and how it compared."""

    path: Path
    files: tuple[str, ...]
    bytes: int
    runtime: str
    tolerance: float
    checks: tuple[Check, ...]


class Step(nn.Module):
    """One call of a model, tensors in and out by position; `inputs` and `axes` are by name, in that order."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], axes: dict[str, Axis], outputs: list[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.axes, self.outputs = inputs, axes, outputs


class _Decoder(Step):
    """The next logits of a causal language model, and its cache one step on."""

    def __init__(self, model: Any) -> None:
        layout = layout_of(model)
        ids = torch.zeros(2, _TIME, dtype=torch.int64)
        inputs, axes = {"input_ids": ids}, {"input_ids": ("batch", "time")}
        past = layout.tensors("past_key_values.{}.", 2, _PAST)
        outputs = ["logits", *layout.names("present.{}.")]
        super().__init__(model, inputs | past, axes | layout.axes("past_key_values.{}."), outputs)
        self.layout = layout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and the present."""
        cache = GrowingCache(tensors[1:], self.layout)
        logits = self.model(tensors[0], cache=cache)
        return logits, *cache.present


class _Encoder(Step):
    """What an encoder makes of its input, and the keys and values that each layer of the decoder reads."""

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        length = "frames" if "input_features" in inputs else "time"
        axes: dict[str, Axis] = {
            n: ("batch", length) if t.dim() == 2 else ("batch", None, length) for n, t in inputs.items()
        }
        names = [f"present.{i}.encoder.{part}" for i in range(len(model.decoder)) for part in ("key", "value")]
        super().__init__(model, inputs, axes, ["last_hidden_state", *names])

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the encoder's output, then keys and values."""
        encoded = self.model.encode(*tensors)
        return encoded, *(part for pair in context_of(self.model.decoder, encoded) for part in pair)


class _CrossDecoder(Step):
    """The next logits of a decoder that reads an encoder's keys and values, and its own cache one step on."""

    def __init__(self, model: Any, masked: bool) -> None:
        layout = layout_of(model)
        cross = layout._replace(parts=("encoder.key", "encoder.value"), length="encoder_time")
        layout = layout._replace(parts=("decoder.key", "decoder.value"))
        inputs: dict[str, Tensor] = {"input_ids": torch.zeros(2, _TIME, dtype=torch.int64)}
        axes: dict[str, Axis] = {"input_ids": ("batch", "time")}
        if masked:
            inputs["encoder_attention_mask"] = torch.ones(2, _CROSS, dtype=torch.int64)
            axes["encoder_attention_mask"] = ("batch", "encoder_time")
        for part, size in ((layout, _PAST), (cross, _CROSS)):
            inputs |= part.tensors("past_key_values.{}.", 2, size)
            axes |= part.axes("past_key_values.{}.")
        super().__init__(model, inputs, axes, ["logits", *layout.names("present.{}.")])
        self.layout, self.masked = layout, masked

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and the present."""
        first, own = 1 + self.masked, 2 * self.layout.num_layers
        cache = GrowingCache(tensors[first : first + own], self.layout)
        rest = tensors[first + own :]
        context = list(zip(rest[::2], rest[1::2], strict=True))
        mask = {"attention_mask": tensors[1]} if self.masked else {}
        logits = self.model.decode(tensors[0], context, cache=cache, **mask)
        return logits, *cache.present


class _Named(nn.Module):
    """A step whose tensors go by name, as runtimes take them."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        found = self.step(*(inputs[name] for name in self.step.inputs))
        return dict(zip(self.step.outputs, found, strict=True))


def export_generation(
    model: nn.Module, folder: str | Path, *, format: Format = "onnx", tolerance: float | None = None
) -> GenerationReport:
    """Write a language model or an encoder-decoder of ours as steps with a cache, each compared with PyTorch first.

    A folder that holds an earlier export is replaced. `tolerance`: the largest difference, relative to the largest
    output where that is above 1; unset 0.0001, or 0.1 for an int8 model. Raises ExportError for a model without a cache
    of keys and values, ParityError, naming the first node that differs, if a file answers differently, StorageError if
    the folder can't be written or holds other files: then nothing is. Needs the extra [export].
    """
    for package in ("onnx", "onnxscript", "onnxruntime", *(["openvino"] if format == "openvino" else [])):
        require(package, "export")
    target = Path(folder)
    check_place(target, folder_with=_NAMES)
    model = on_cpu_in_float32(model)
    steps = _steps(model)
    tolerance = tolerance or (_INT8_TOLERANCE if int8_specs(model) else _TOLERANCE)
    checks: list[Check] = []
    version = ""
    with atomic_folder(target, replace=True) as temporary:
        for stem, step in steps.items():
            found, version = _write(step, temporary, stem, format, tolerance)
            checks += found
        (temporary / SETTINGS).write_text(json.dumps(_settings(model), indent=2) + "\n", encoding="utf-8")
        files = sorted(path.name for path in temporary.iterdir())
        size = sum(path.stat().st_size for path in temporary.iterdir())
    return GenerationReport(target, tuple(files), size, version, tolerance, tuple(checks))


def _steps(model: nn.Module) -> dict[str, Step]:
    """Return the files' stems and what goes into them."""
    if all(hasattr(model, name) for name in ("encode", "decode", "new_cache", "decoder", "example_inputs")):
        example: dict[str, Tensor] = model.example_inputs(batch_size=2)  # type: ignore[operator]
        inputs = {name: tensor for name, tensor in example.items() if not name.startswith("decoder_")}
        return {ENCODER: _Encoder(model, inputs), CROSS_DECODER: _CrossDecoder(model, "attention_mask" in inputs)}
    if isinstance(model, CausalLanguageModel):
        return {DECODER: _Decoder(model)}
    raise ExportError(
        "the model can't be exported for generation",
        found=type(model).__name__,
        wanted="a causal language model or an encoder-decoder with new_cache",
        fix="export its forward pass with export_onnx",
    )


def _settings(model: nn.Module) -> dict[str, int]:
    """Return the numbers a loop needs, under transformers' names."""
    config = getattr(model, "config", None)
    fields = {"eos_id": "eos_token_id", "pad_id": "pad_token_id", "start_id": "decoder_start_token_id"}
    numbers = {theirs: getattr(config, ours, None) for ours, theirs in fields.items()}
    numbers["max_length"] = getattr(config, "max_length", None)
    return {name: number for name, number in numbers.items() if number is not None}


def _write(step: Step, folder: Path, stem: str, format: Format, tolerance: float) -> tuple[Sequence[Check], str]:
    """Write one step, compared with PyTorch at several sizes, an empty past and a single token among them."""
    program = capture(step, step.inputs, step.axes, positional="tensors")
    exported = translate(program, step.axes, step.outputs, _OPSET)
    proto = exported.model_proto
    clean(proto, {"tolerance": str(tolerance)})
    original = EagerRuntime(_Named(step), step.inputs, step.axes)

    def compared(runtime: Runtime, file: Path) -> Sequence[Check]:
        explain = explanation(exported.exported_program, file, tolerance, openvino=format == "openvino")
        return compare(original, runtime, step.inputs, step.axes, _sizes(step), tolerance, explain)

    if format == "onnx":
        path = folder / f"{stem}.onnx"
        checks, _ = write_onnx(proto, path, lambda file: compared(OnnxRuntime(file), file))
        return checks, OnnxRuntime(path).version
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        write_onnx(proto, file, lambda _: None)
        path = folder / f"{stem}.xml"
        save_ir(file, path, half_weights=False)
        runtime = OpenVinoRuntime(path)
        return compared(runtime, file), runtime.version


def _sizes(step: Step) -> list[dict[str, int]]:
    names = {axis for axes in step.axes.values() for axis in axes if axis}
    usual = {"batch": 2, "time": _TIME, "past": _PAST, "encoder_time": _CROSS, "frames": 12}
    first, next_token = {"past": 0, "batch": 3}, {"time": 1, "batch": 1, "past": _PAST + 1}
    return [{axis: {**usual, **other}[axis] for axis in names} for other in (usual, first, next_token)]
