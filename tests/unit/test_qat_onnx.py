"""From quantization-aware training to ONNX Runtime: the file answers as the model did while it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepseek.export.qdq import quantized_program
from deepseek.models import build
from deepseek.nn.int8_linear import integer_product_is_exact
from deepseek.quantization import QuantConfig
from deepseek.quantization.qat import convert_qat, prepare_qat
from deepseek.quantization.report import sqnr_db

TOYS = Path(__file__).parent.parent / "toys"


def trained(toy: str, scheme: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a prepared model after some steps towards an arbitrary goal, and its inputs."""
    torch.manual_seed(0)
    model = build(TOYS / f"{toy}.yaml")
    inputs: dict[str, Tensor] = model.example_inputs(4)  # type: ignore[operator]
    config = QuantConfig.model_validate({"method": "qat", "quant_scheme": scheme})
    prepared = prepare_qat(model, config, calibration_data=[inputs], freeze_norms_after=4).train()
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    for _ in range(6):
        loss = (prepared(**inputs) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prepared.eval(), inputs


@pytest.mark.parametrize(("toy", "scheme"), [("resnet", "asymmetric"), ("vit", "symmetric")])
def test_onnx_runtime_answers_within_one_quantum_of_training(toy: str, scheme: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    prepared, inputs = trained(toy, scheme)
    converted = convert_qat(prepared)
    program = quantized_program(converted, inputs)  # without batches: no edge is rounded that was not in training
    path = program.to_onnx(tmp_path / "model.onnx")
    with torch.no_grad():
        wanted = prepared(**inputs)
    head: Any = converted.get_submodule("classifier")
    quantum = float(head.input_scale) * float(
        head.dequantized_weight().abs().sum(dim=1).max()
    )  # all inputs one level off
    for optimized in (False, True) if integer_product_is_exact() else (False,):
        found = run(path, inputs, optimized)
        assert float((found - wanted).abs().max()) <= quantum, (optimized, quantum)
        assert sqnr_db(wanted, found) > 35


def run(path: Path, inputs: dict[str, Tensor], optimized: bool) -> Tensor:
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(np.asarray(outputs[0]))
