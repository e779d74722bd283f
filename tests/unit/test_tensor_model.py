"""Bundles as they are served: on which runtime, with which signature, and answers equal to the model's own."""

from __future__ import annotations

import asyncio
import json
import shutil

import numpy as np
import pytest
import torch

import deepseek as ds
from deepseek.errors import BundleError, ModelError, RequestError
from deepseek.export import choose_runtime, export_onnx
from deepseek.models.bert import BERT, BERTConfig
from deepseek.models.ft_transformer import FTTransformer, FTTransformerConfig
from deepseek.models.schnet import SchNet, SchNetConfig
from deepseek.serve.tensor.datatypes import TensorSpec
from deepseek.serve.tensor.describe import close
from deepseek.serve.tensor.engine import TensorEngine
from deepseek.serve.tensor.limits import TensorLimits
from deepseek.serve.tensor.model import TensorModel
from tests.fake_tensors import mlp_bundle
from tests.toy_forms import MODELS, bundle

SMALL_BERT = {"vocab_size": 50, "d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 32, "max_length": 40}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(0)
    model = BERT(BERTConfig(**SMALL_BERT, num_labels=3, head="classification"))
    return ds.save(model, tmp_path_factory.mktemp("bert") / "bert", task="classification")


@pytest.fixture
def exported(once_exported, tmp_path):
    return shutil.copytree(once_exported, tmp_path / "mlp")


@pytest.fixture(scope="module")
def once_exported(tmp_path_factory):
    path = mlp_bundle(tmp_path_factory.mktemp("exported") / "mlp")
    (path / "exports").mkdir()
    export_onnx(ds.load(path, device="cpu").model, path / "exports" / "model.onnx")
    return path


def reference(model, inputs):
    with torch.no_grad():
        return ds.load(model.bundle.path, device="cpu").model(
            **{name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
        )


def test_without_exports_pytorch_itself_serves(tmp_path):
    model = TensorModel.load(mlp_bundle(tmp_path / "mlp"), device="cpu")
    model.verify()
    assert (model.plan.runtime, model.plan.precision) == ("eager", "fp32")
    assert model.signature.inputs == (TensorSpec("features", "FP32", (-1, 4)),)
    assert model.signature.outputs == (TensorSpec("logits", "FP32", (-1, 3)),)
    inputs = model.example(5)
    np.testing.assert_allclose(model.run(inputs)["logits"], reference(model, inputs), rtol=1e-5, atol=1e-6)
    assert set(model.seconds) == {1, 2, 4, 8, 16, 32}


def test_the_stored_choice_is_used_on_its_machine_and_only_there(exported):
    choice = choose_runtime(exported, seconds=0.2, runtimes=["eager", "onnxruntime"], precisions=("fp32",))
    place = exported / "exports" / "runtime.json"
    stored = json.loads(place.read_text())
    row = next(row for row in stored["rows"] if row["runtime"] == "onnxruntime")
    stored["winner"] = {**row, "settings": {**row["settings"], "threads": 1}}
    place.write_text(json.dumps(stored))
    model = TensorModel.load(exported, device="cpu")
    model.verify()
    assert (model.plan.runtime, model.plan.settings.threads) == ("onnxruntime", 1)
    inputs = model.example(5)
    np.testing.assert_allclose(model.run(inputs)["logits"], reference(model, inputs), rtol=1e-4, atol=1e-5)
    place.write_text(json.dumps({**stored, "machine": {**choice.machine, "cpu": "another"}}))
    elsewhere = TensorModel.load(exported, device="cpu", limits=TensorLimits(measure_seconds=0))
    assert elsewhere.plan.runtime == "eager"
    assert "another machine" in elsewhere.plan.reason


def test_exports_without_a_choice_are_measured_for_a_moment_and_nothing_is_written(exported):
    model = TensorModel.load(exported, device="cpu", limits=TensorLimits(measure_seconds=0.2))
    assert model.plan.reason.startswith("measured now")
    assert not (exported / "exports" / "runtime.json").exists()


def test_a_choice_that_does_not_open_is_no_reason_not_to_serve(exported):
    choose_runtime(exported, seconds=0.2, runtimes=["eager", "onnxruntime"], precisions=("fp32",))
    place = exported / "exports" / "runtime.json"
    stored = json.loads(place.read_text())
    stored["winner"] = next(row for row in stored["rows"] if row["runtime"] == "onnxruntime")
    (exported / "exports" / "model.onnx").write_bytes(b"\0" * stored["files"]["exports/model.onnx"])
    place.write_text(json.dumps(stored))
    model = TensorModel.load(exported, device="cpu")
    assert model.plan.runtime == "eager"
    model.verify()


def test_a_choice_made_for_one_size_serves_every_size(exported):
    choose_runtime(exported, seconds=0.2, runtimes=["eager", "onnxruntime"], precisions=("fp32",))
    place = exported / "exports" / "runtime.json"
    stored = json.loads(place.read_text())
    row = next(row for row in stored["rows"] if row["runtime"] == "onnxruntime")
    stored["winner"] = {**row, "settings": {**row["settings"], "sizes": {"batch": 1}}}
    place.write_text(json.dumps(stored))
    model = TensorModel.load(exported, device="cpu")
    for rows in (1, 3):
        inputs = model.example(rows)
        np.testing.assert_allclose(model.run(inputs)["logits"], reference(model, inputs), rtol=1e-4, atol=1e-5)


def test_text_of_other_lengths_shares_a_run_and_is_answered_as_alone(bert):
    model = TensorModel.load(bert, device="cpu")
    assert model.pad_axes == {"time"}
    assert model.signature.limits == {"time": 40}
    assert model.signature.ranges == {"input_ids": (0, 50), "token_type_ids": (0, 2)}
    engine = TensorEngine(model)
    requests = [
        {name: np.ascontiguousarray(value[:, : 9 + index % 4]) for name, value in model.example(1 + index % 2).items()}
        for index in range(8)
    ]
    found = {}
    for index, request in enumerate(requests):
        engine.submit(request, lambda answer, index=index: found.__setitem__(index, answer))
    engine.step()
    assert len(found) == 8
    for index, request in enumerate(requests):
        assert close(model.run(request)["logits"], found[index]["logits"], "fp32")
        np.testing.assert_allclose(found[index]["logits"], reference(model, request), rtol=1e-4, atol=1e-5)


def test_values_no_model_has_are_the_requests_fault_and_harm_no_one_else(bert):
    model = TensorModel.load(bert, device="cpu")
    engine = TensorEngine(model)
    good = model.example(1)
    with pytest.raises(RequestError, match="49"):
        engine.submit({**good, "input_ids": good["input_ids"] + 1000}, print)
    assert isinstance(model.explain(RuntimeError("odd")), RequestError)


def test_categories_the_table_does_not_know_are_refused(tmp_path):
    torch.manual_seed(0)
    table = FTTransformer(FTTransformerConfig(num_numeric=2, cardinalities=[3, 4], d_model=8, num_heads=2))
    model = TensorModel.load(ds.save(table, tmp_path / "t", task="classification"), device="cpu")
    inputs = model.example(2)
    inputs["categorical"][1] = [3, 0]
    with pytest.raises(RequestError, match="categorical"):
        model.signature.check(inputs)


def test_golden_samples_are_answered_by_what_serves(exported):
    model = TensorModel.load(exported, device="cpu", limits=TensorLimits(measure_seconds=0))
    model._runs = [lambda arrays: {"logits": np.full((len(arrays["features"]), 3), 1e3, np.float32)}]
    with pytest.raises(BundleError, match="golden"):
        model.verify()


def test_every_phase_is_timed_and_the_fingerprint_is_that_of_the_weights(tmp_path):
    one = TensorModel.load(mlp_bundle(tmp_path / "a", seed=1), device="cpu")
    one.verify()
    assert {"open", "describe", "runtime", "try", "fingerprint", "golden", "warm_up"} == set(one.timings)
    again = TensorModel.load(mlp_bundle(tmp_path / "b", seed=1), device="cpu")
    other = TensorModel.load(mlp_bundle(tmp_path / "c", seed=2), device="cpu")
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_molecules_of_several_inputs_are_served_in_batches_too(tmp_path):
    torch.manual_seed(0)
    model = TensorModel.load(
        ds.save(SchNet(SchNetConfig(d_model=16, num_interactions=1)), tmp_path / "s", task="energies_forces"),
        device="cpu",
    )
    model.verify()
    engine = TensorEngine(model)
    engine.start()

    async def ask():
        return await asyncio.gather(*[engine.infer(model.example(1)) for _ in range(6)])

    alone = model.run(model.example(1))
    for answer in asyncio.run(ask()):
        for name, value in alone.items():
            assert close(value, answer[name], "fp32")
    engine.close(5.0)


def test_read_only_arrays_from_a_request_body_are_taken(tmp_path):
    model = TensorModel.load(mlp_bundle(tmp_path / "m"), device="cpu")
    body = np.ones((2, 4), np.float32).tobytes()
    assert model.run({"features": np.frombuffer(body, np.float32).reshape(2, 4)})["logits"].shape == (2, 3)


def test_inputs_shorter_than_the_model_takes_are_refused_by_their_size(tmp_path):
    bundle(tmp_path / "b", MODELS["conformer"], "speech_recognition")
    model = TensorModel.load(tmp_path / "b", device="cpu")
    least = model.signature.least["frames"]
    long, short = (
        {
            name: value[:, :size] if name == "input_features" else np.full_like(value, size)
            for name, value in one.items()
        }
        for one, size in ((model.example(), least), (model.example(), least - 1))
    )
    assert model.signature.check(long) == 1
    assert all(np.isfinite(value).all() for value in model.run(long).values() if value.dtype.kind == "f")
    with pytest.raises(RequestError, match=f"{least} <= frames"):
        model.signature.check(short)
    with torch.no_grad(), pytest.raises(ModelError, match=str(least)):  # the template's own words
        model.bundle.model(**{name: torch.from_numpy(value) for name, value in short.items()})
