"""A candidate of a search on the runtimes of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deepseek import bundle
from deepseek.compress.measure import figures_of, sample_inputs
from deepseek.compress.search.deployment import deployed
from deepseek.export.runtimes import open_runtime
from deepseek.quantization import quantize_model
from deepseek.tasks import Classification
from tests.toy_compress import spots, trained

VAL = spots(64, seed=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("deployed") / "bundle", steps=20)


def test_an_int8_candidate_is_exported_and_the_fastest_runtime_named(original: Path, tmp_path: Path) -> None:
    model = quantize_model(bundle.load(original, device="cpu").model)
    place = bundle.save(model, tmp_path / "small", task="classification")
    inputs = sample_inputs(model, VAL[0])
    measured = []

    def figures(form: torch.nn.Module) -> dict[str, float]:
        measured.append(form)
        return figures_of(form, VAL, Classification())

    found = deployed(place, model, inputs, figures, 0.05, ["eager", "onnxruntime"])
    assert {row["runtime"] for row in found["runtimes"]} == {"eager", "onnxruntime"}
    times = [row["latency_ms"] for row in found["runtimes"] if row["latency_ms"] is not None]
    assert len(times) == 2 and found["latency_ms"] in times and len(measured) >= 2
    stored = json.loads((place / "exports" / "runtime.json").read_text(encoding="utf-8"))
    assert stored["winner"]["runtime"] == found["runtime"]
    runtime = open_runtime("onnxruntime", place, precision="int8")
    with torch.no_grad():
        wanted = model(**inputs)
    torch.testing.assert_close(runtime.run(inputs)["logits"], wanted, atol=0.1, rtol=0.1)


def test_eager_alone_exports_nothing(original: Path) -> None:
    model = bundle.load(original, device="cpu").model
    assert deployed(original, model, sample_inputs(model, VAL[0]), lambda form: {}, 0.05, ["eager"]) == {}
    assert not (original / "exports").exists()
