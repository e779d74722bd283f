"""The forms of a model that `benchmarks.compress` times: each makes its files once, and opens them as a function.

Every form runs with as many threads as the process is given, at the batch it is asked for, and at its own best
settings: OpenVINO with the latency hint and fixed shapes; ONNX Runtime with all graph optimisations; inductor frozen,
with its C++ wrapper. Sources: the documentation of OpenVINO 2026, NNCF 3, ONNX Runtime 1.31 and torchao 0.18.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.compress_cases.models import Case, Inputs, calibration, int8_model

Run = Callable[[Inputs], Tensor]


class Form(NamedTuple):
    """One way to run a case: `make` writes its files into a folder, `open` returns a function of the inputs."""

    role: str
    precision: str
    needs: str
    make: Callable[[Case, Path], None]
    open: Callable[[Case, Path, Inputs], Run]
    file: str | None = None
    """The file whose size counts (and, for OpenVINO's, the weights beside it)."""

    def bytes(self, folder: Path) -> int | None:
        """Return the size of the form's files."""
        if self.file is None:
            return None
        weights = (folder / self.file).with_suffix(".bin")
        return (folder / self.file).stat().st_size + (weights.stat().st_size if weights.exists() else 0)


FLOAT, OURS = "float.onnx", "ours.onnx"


def _nothing(case: Case, folder: Path) -> None:
    """Make no file."""


def _make_float(case: Case, folder: Path) -> None:
    """Write the float model as ONNX, which OpenVINO, NNCF and ONNX Runtime start from."""
    from deepseek.export import export_onnx

    if not (folder / FLOAT).exists():
        sizes = {"batch": 2} | ({"time": case.settings["time"]} if "time" in case.settings else {})
        export_onnx(case.model(), folder / FLOAT, case.batch(2), axes=_axes(case), checks=[sizes])


def _make_ours(case: Case, folder: Path) -> None:
    from deepseek.export.qdq import QdqConfig, quantized_program

    _, model = int8_model(case)
    config = QdqConfig(calibration="minmax")
    quantized_program(model, case.batch(2), _axes(case), calibration(case), config).to_onnx(folder / OURS)


def _make_nncf(case: Case, folder: Path) -> None:
    """NNCF as its guide says: transformers by their model type, activations asymmetric; networks of images as is."""
    import nncf
    import openvino

    texts = "time" in case.settings
    data = [{name: value[:1].numpy() for name, value in batch.items()} for batch in calibration(case)]
    _make_float(case, folder)
    source: Any = openvino.Core().read_model(folder / FLOAT)
    dataset = nncf.Dataset(data)
    extra = {"model_type": nncf.ModelType.TRANSFORMER} if texts else {}
    preset = nncf.QuantizationPreset.MIXED if texts else nncf.QuantizationPreset.PERFORMANCE
    openvino.save_model(
        nncf.quantize(source, dataset, preset=preset, subset_size=len(data), **extra), folder / "nncf.xml"
    )


def _make_ort_static(case: Case, folder: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration(case))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: value.numpy() for name, value in batch.items()}

    _make_float(case, folder)
    ready = folder / "ready.onnx"
    quant_pre_process(str(folder / FLOAT), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(folder / "ort-static.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=False,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _make_ort_dynamic(case: Case, folder: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _make_float(case, folder)
    proto = onnx.load(folder / FLOAT)
    proto.graph.ClearField("value_info")  # the quantizer turns weights around and trips over their old shapes
    target = folder / "ort-dynamic.onnx"
    quantize_dynamic(proto, str(target), per_channel=True, weight_type=QuantType.QInt8)


def _eager(precision: str) -> Callable[[Case, Path, Inputs], Run]:
    def start(case: Case, folder: Path, inputs: Inputs) -> Run:
        model = case.model()
        if precision == "bf16":
            model = model.bfloat16()
        return lambda given: case.answer(model, given)

    return start


def _openvino(name: str, rest: str) -> Callable[[Case, Path, Inputs], Run]:
    def start(case: Case, folder: Path, inputs: Inputs) -> Run:
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / name)
        model.reshape({port: list(inputs[_input_of(port, inputs)].shape) for port in model.inputs})
        threads = os.environ["OMP_NUM_THREADS"]
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": rest}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        names = {_input_of(port, inputs): port for port in model.inputs}

        def run(given: Inputs) -> Tensor:
            found = request.infer(
                {port.any_name: given[name].numpy() for name, port in names.items()}, share_inputs=True
            )
            return torch.from_numpy(found[0])

        return run

    return start


def _onnxruntime(name: str) -> Callable[[Case, Path, Inputs], Run]:
    def start(case: Case, folder: Path, inputs: Inputs) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

        def run(given: Inputs) -> Tensor:
            return torch.from_numpy(session.run(None, {key: value.numpy() for key, value in given.items()})[0])

        return run

    return start


def _inductor(precision: str) -> Callable[[Case, Path, Inputs], Run]:
    def start(case: Case, folder: Path, inputs: Inputs) -> Run:
        model: nn.Module = case.model().requires_grad_(False)
        if precision == "int8":
            model = _pt2e(case, model, inputs)
        with _frozen():
            compiled = torch.compile(model)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                compiled(**inputs)

        def run(given: Inputs) -> Tensor:
            with _frozen(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found = compiled(**given)
            return found if isinstance(found, Tensor) else next(iter(found))

        return run

    return start


def _pt2e(case: Case, model: nn.Module, inputs: Inputs) -> nn.Module:
    """Quantize with torchao's quantizer for inductor on x86."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    captured = torch.export.export(model, (), dict(inputs)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(captured, quantizer)
    size = next(iter(inputs.values())).shape[0]
    with torch.no_grad():
        for seed in range(100, 104):
            prepared(**case.batch(size, seed))
    converted: nn.Module = convert_pt2e(prepared)
    return converted


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    import torch._inductor.config as config

    with config.patch(freezing=True, cpp_wrapper=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _axes(case: Case) -> dict[str, tuple[str | None, ...]]:
    names = {2: ("batch", "time"), 4: ("batch", None, None, None)}
    return {name: names[value.dim()] for name, value in case.batch(1).items()}


def _input_of(port: Any, inputs: Inputs) -> str:
    """Return the input that a port of a converted model stands for: by its name, else the only one."""
    known = [name for name in inputs if name in port.names]
    return known[0] if known else next(iter(inputs))


FORMS = {
    "eager fp32": Form("reference", "fp32", "torch", _nothing, _eager("fp32")),
    "eager bf16": Form("reference", "bf16", "torch", _nothing, _eager("bf16")),
    "ours int8 openvino": Form("ours", "int8", "openvino", _make_ours, _openvino(OURS, "f32"), OURS),
    "ours int8+bf16 openvino": Form("ours", "int8", "openvino", _make_ours, _openvino(OURS, "bf16"), OURS),
    "ours int8 onnxruntime": Form("ours", "int8", "onnxruntime", _make_ours, _onnxruntime(OURS), OURS),
    "nncf int8 openvino": Form("peer", "int8", "nncf", _make_nncf, _openvino("nncf.xml", "f32"), "nncf.xml"),
    "nncf int8+bf16 openvino": Form("peer", "int8", "nncf", _make_nncf, _openvino("nncf.xml", "bf16"), "nncf.xml"),
    "onnxruntime int8 static": Form(
        "peer", "int8", "onnxruntime", _make_ort_static, _onnxruntime("ort-static.onnx"), "ort-static.onnx"
    ),
    "onnxruntime int8 dynamic": Form(
        "peer", "int8", "onnxruntime", _make_ort_dynamic, _onnxruntime("ort-dynamic.onnx"), "ort-dynamic.onnx"
    ),
    "pt2e int8 inductor": Form("peer", "int8", "torchao", _nothing, _inductor("int8")),
    "fp32 openvino": Form("reference", "fp32", "openvino", _make_float, _openvino(FLOAT, "f32"), FLOAT),
    "bf16 openvino": Form("reference", "bf16", "openvino", _make_float, _openvino(FLOAT, "bf16")),
    "bf16 inductor": Form("reference", "bf16", "torch", _nothing, _inductor("bf16")),
}
"""All forms by name. The best of ours is held against the best peer."""
