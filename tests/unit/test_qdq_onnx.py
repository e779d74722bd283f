"""Quantized graphs as ONNX files: ONNX Runtime and OpenVINO answer like the reference in torch, within one quantum."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.export.qdq.ops import dequantize_weight, quantize_dequantize
from deepseek.quantization.report import sqnr_db
from tests.unit.test_qdq_program import Inputs, small, toy

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def answers(path: Path, inputs: Inputs, *, optimised: bool) -> list[Tensor]:
    """Run a file in ONNX Runtime, node by node as it is written or with its fused kernels."""
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(a) for a in session.run(None, {name: value.numpy() for name, value in inputs.items()})]


def assert_within_a_quantum(found: Tensor, wanted: Tensor) -> None:
    """Hold two outputs together: a quantum is the step of 8 bits over the output's own range."""
    quantum = float(wanted.max() - wanted.min()) / 255
    assert float((found - wanted).abs().max()) <= quantum


@pytest.mark.parametrize("name", ["resnet", "bert", "vit", "mobilenet_v3", "unet_plus_plus"])
def test_the_file_answers_like_the_graph(name: str, tmp_path: Path) -> None:
    model, _, program, inputs = toy(name)
    path = program.to_onnx(tmp_path / "model.onnx")
    wanted = next(iter(program.run(inputs).values()))
    assert_within_a_quantum(answers(path, inputs, optimised=False)[0], wanted)
    assert sqnr_db(wanted, answers(path, inputs, optimised=True)[0]) > 20
    with torch.no_grad():
        exact = model(**inputs)
    assert sqnr_db(exact if isinstance(exact, Tensor) else exact[0], wanted) > 20
    one = {name: value[:1] for name, value in inputs.items()}
    assert_within_a_quantum(answers(path, one, optimised=False)[0], next(iter(program.run(one).values())))


def test_openvino_reads_the_same_file(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    _, _, program, inputs = toy("resnet")
    path = program.to_onnx(tmp_path / "model.onnx")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    found = compiled({name: value.numpy() for name, value in inputs.items()})[0]
    assert sqnr_db(program.run(inputs)["logits"], torch.from_numpy(found)) > 20


def test_the_file_holds_integers_and_no_path_of_this_machine(tmp_path: Path) -> None:
    _, program = small()
    path = program.to_onnx(tmp_path / "model.onnx")
    proto = onnx.load(path)
    kinds = Counter(tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) == 2)
    assert kinds == {onnx.TensorProto.INT8: 2}
    counts = Counter(node.op_type for node in proto.graph.node)
    assert counts["QuantizeLinear"] == 2 and counts["DequantizeLinear"] == 4
    onnx.checker.check_model(str(path), full_check=True)
    assert str(Path(__file__).parent.parent.parent).encode() not in path.read_bytes()


def test_rounding_is_that_of_the_format() -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    x = torch.cat([torch.arange(-400, 400) * 0.125, torch.randn(200) * 30])
    for scale, zero_point, signed in ((0.25, 0, True), (0.25, 7, False), (0.1, 200, False)):
        kind = kinds.INT8 if signed else kinds.UINT8
        constants = [
            helper.make_tensor("scale", kinds.FLOAT, [], [scale]),
            helper.make_tensor("zero", kind, [], [zero_point]),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ]
        ends = [helper.make_tensor_value_info(name, kinds.FLOAT, [len(x)]) for name in "xy"]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(quantize_dequantize(x, scale, zero_point, signed), found, rtol=0, atol=1e-6)


def test_weights_are_scaled_along_their_axis() -> None:
    weight = torch.randint(-127, 128, (3, 4, 5), dtype=torch.int8)
    for axis in range(3):
        scale = torch.rand(weight.shape[axis])
        wanted = torch.stack([part * s for part, s in zip(weight.unbind(axis), scale, strict=True)], axis)
        assert torch.equal(dequantize_weight(weight, scale, axis), wanted)
