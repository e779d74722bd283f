"""Recordings of several lengths share a run on every runtime, and each is answered as alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from deepseek.export import choose_runtime, export_onnx, export_openvino
from deepseek.serve.tensor.engine import TensorEngine
from deepseek.serve.tensor.model import TensorModel
from tests.toy_forms import MODELS, bundle


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_speech_of_other_lengths_shares_a_run_and_is_answered_as_alone(tmp_path, runtime):
    if runtime != "eager":
        pytest.importorskip(runtime)
    path = tmp_path / "b"
    made = bundle(path, MODELS["conformer"], "speech_recognition")
    (path / "exports").mkdir()
    if runtime == "onnxruntime":
        export_onnx(made.model, path / "exports" / "model.onnx")
    elif runtime == "openvino":
        export_openvino(made.model, path / "exports" / "openvino")
    choose_runtime(path, seconds=0.1, runtimes=sorted({"eager", runtime}), precisions=("fp32",))
    place = path / "exports" / "runtime.json"
    stored = json.loads(place.read_text())
    stored["winner"] = next(row for row in stored["rows"] if row["runtime"].startswith(runtime))
    place.write_text(json.dumps(stored))
    model = TensorModel.load(path, device="cpu")
    assert (model.plan.runtime.partition(":")[0], model.pad_axes) == (runtime, {"frames"})
    assert model.signature.derived["ctc_logits_1"] == ("frames", 3, 4)
    engine, draw, found = TensorEngine(model), np.random.default_rng(0), {}
    requests = []
    for frames, rows in ((65, 1), (70, 2), (90, 1), (96, 1), (81, 1)):
        lengths = np.array([frames - 5 * row for row in range(rows)])
        features = draw.standard_normal((rows, frames, 16)).astype(np.float32)
        requests.append({"input_features": features, "lengths": lengths})
    for index, request in enumerate(requests):
        engine.submit(request, lambda answer, index=index: found.__setitem__(index, answer))
    steps = 0
    while len(found) < len(requests):
        engine.step()
        steps += 1
    assert steps < len(requests)
    for index, request in enumerate(requests):
        with torch.no_grad():
            alone = model.bundle.model(**{name: torch.from_numpy(value) for name, value in request.items()}).ctc_logits
        assert found[index]["ctc_logits"].shape == alone.shape
        for row, frames in enumerate(found[index]["lengths"]):
            np.testing.assert_allclose(found[index]["ctc_logits"][row, :frames], alone[row, :frames], atol=1e-4)
