"""The int8 benchmark at toy size: forms that run and agree, a verdict that a fast wrong model can't win."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compress import field, honest, ratios, verdict
from benchmarks.compress_cases.forms import FORMS
from benchmarks.compress_cases.models import CASES
from benchmarks.compress_cases.run import case_of, make, timed
from benchmarks.harness import Match, Run

FIGURES = {  # milliseconds, cosine
    "eager fp32": (80.0, 1.0),
    "ours int8 openvino": (8.0, 0.99),
    "ours int8 onnxruntime": (4.0, 0.5),
    "nncf int8 openvino": (8.0, 0.98),
    "onnxruntime int8 static": (1.0, 0.1),
    "bf16 openvino": (16.0, 0.999),
}


def played() -> Match:
    match = Match(field("resnet50", list(FIGURES), 1, Path()), higher_is_better=False, say=lambda text: None)
    for name, (value, cosine) in FIGURES.items():
        match.runs[name] = [Run(1, value, {"cosine": cosine}, {}, 0.5, 0.0)]
    return match


def test_the_fastest_form_that_answers_wrong_does_not_count() -> None:
    match = played()
    assert honest(match, "ours") == ["ours int8 openvino"] and honest(match, "peer") == ["nncf int8 openvino"]
    outcome = verdict(match, "resnet50", 1, {"ours int8 openvino": 26, "fp32 openvino": 100})
    assert outcome.ratio == 1.0 and outcome.ours == 8.0
    states = {check.name: check.ok for check in outcome.checks}
    assert states["int8, times faster than eager FP32"] and states["bf16, times faster than eager FP32"]
    assert states["size of FP32"] and not states["ours int8 onnxruntime: cosine to FP32"]
    assert ratios(match)["bf16 openvino"] == 5.0


@pytest.mark.parametrize("name", list(CASES))
def test_our_form_is_made_and_agrees_with_eager(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    case, form = case_of(f"{name}:toy"), "ours int8 onnxruntime"
    outputs = make(case, form, tmp_path)["outputs"]
    assert isinstance(outputs, dict) and outputs["bytes"] == FORMS[form].bytes(tmp_path)
    report = timed(case, form, 2, tmp_path, seconds=0.01)["outputs"]
    assert isinstance(report, dict) and report["snr_db"] > 20 and report["cosine"] > 0.99
