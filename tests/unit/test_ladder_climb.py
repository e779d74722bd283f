"""The ladder on bundles of several kinds, and on forms that must fail it: named, and nothing written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import deepseek as ds
from deepseek.cli.verify_bundle import verify_bundle
from deepseek.errors import BundleError, ConfigError, StorageError
from deepseek.export import export_onnx
from deepseek.export.ladder import Ladder, Rung, climb
from deepseek.export.rungs import RUNGS
from deepseek.models import build
from deepseek.quantization import QuantConfig, quantize_model
from tests.toy_gpt import toy_gpt

pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
pytest.importorskip("openvino", reason="the extra [export] is not installed")

TOYS = Path(__file__).parent.parent / "toys"
KINDS = ("gpt", "resnet", "bert-classification", "yolov5", "conformer", "ft_transformer")
IN_TORCH = ("eager", "bf16", "int8 dynamic", "int8 static", "int8 bundle")
QUICK: dict[str, Any] = {"seconds": 0.01}


def by_name(ladder: Ladder) -> dict[str, Rung]:
    return {rung.name: rung for rung in ladder.rungs}


def saved(model: nn.Module, path: Path) -> Path:
    ds.save(model, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_climbs_in_torch(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build(TOYS / f"{kind}.yaml").eval()
    bundle = saved(model, tmp_path / "bundle")
    saved(quantize_model(model), tmp_path / "bundle-int8")
    ladder = climb(bundle, rungs=IN_TORCH, **QUICK)
    assert ladder.ok, [rung for rung in ladder.rungs if rung.status == "failed"]
    assert {rung.status for rung in ladder.rungs} == {"passed"} and len(ladder.shapes) >= 3
    rungs = by_name(ladder)
    assert rungs["eager"].deviation is not None and rungs["eager"].deviation.max_abs_error == 0
    for rung in ladder.rungs[1:]:
        assert rung.deviation is not None and rung.deviation.max_abs_error > 0, "another form, not the same one"
        assert rung.latency is not None and rung.latency.runs >= 3 and rung.speedup is not None
    sizes = [rungs[name].bytes or 0 for name in ("eager", "bf16", "int8 dynamic")]
    assert sizes == sorted(sizes, reverse=True)
    stored = json.loads((bundle / "exports" / "ladder.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(ladder.to_dict())) and stored["ok"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of the toy GPT."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(toy_gpt(), path)
    return path


def test_exported_forms_climb_too(exported: Path, tmp_path: Path) -> None:
    bundle = saved(toy_gpt(), tmp_path / "bundle")
    (bundle / "exports").mkdir()
    (bundle / "exports" / "model.onnx").write_bytes(exported.read_bytes())
    rungs = by_name(climb(bundle, rungs=["onnxruntime", "openvino", "openvino bf16"], record=False, **QUICK))
    for name in ("onnxruntime", "openvino"):
        deviation = rungs[name].deviation
        assert rungs[name].status == "passed" and deviation is not None and deviation.relative_error <= 1e-4
        assert rungs[name].bytes == exported.stat().st_size
    assert rungs["openvino bf16"].precision == "bf16"
    assert not (bundle / "exports" / "ladder.json").exists()


def test_a_wrong_file_fails_names_the_node_and_writes_nothing(exported: Path, tmp_path: Path) -> None:
    model = toy_gpt()
    with torch.no_grad():
        model.blocks[1].feed_forward.up.weight.mul_(1.5)  # type: ignore[union-attr,operator]
    bundle = saved(model, tmp_path / "bundle")
    (bundle / "exports").mkdir()
    (bundle / "exports" / "model.onnx").write_bytes(exported.read_bytes())
    before = sorted(path.name for path in bundle.rglob("*"))
    ladder = climb(bundle, rungs=["eager", "onnxruntime"], **QUICK)
    rung = by_name(ladder)["onnxruntime"]
    assert not ladder.ok and rung.status == "failed" and "output 'logits' is off by" in rung.reason
    assert rung.first_difference is not None and "blocks.1.feed_forward.up" in rung.first_difference
    assert sorted(path.name for path in bundle.rglob("*")) == before
    (bundle / "exports" / "model.onnx").write_bytes(b"damaged")
    rung = by_name(climb(bundle, rungs=["onnxruntime"], **QUICK))["onnxruntime"]
    assert rung.status == "failed" and "can't load" in rung.reason


def test_a_bad_int8_form_names_its_first_layer_unless_the_task_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_gpt()
    bundle = saved(model, tmp_path / "bundle")
    broken = quantize_model(model, QuantConfig(skip=["lm_head"]))
    with torch.no_grad():
        broken.blocks[1].feed_forward.up.scale.mul_(9)  # type: ignore[union-attr,operator]
    saved(broken, tmp_path / "bundle-int8")
    rung = by_name(climb(bundle, rungs=["int8 bundle"], **QUICK))["int8 bundle"]
    assert rung.status == "failed" and "dB of signal to noise, wanted 20 dB" in rung.reason
    assert rung.first_difference is not None and rung.first_difference.startswith("layer 'blocks.1.feed_forward.up'")

    def unmoved(model: nn.Module) -> Mapping[str, float]:
        return {"accuracy": 0.75}

    rung = by_name(climb(bundle, rungs=["int8 bundle"], metric=unmoved, **QUICK))["int8 bundle"]
    assert rung.status == "passed" and rung.reason.endswith("the task's figure keeps it")


def test_rungs_that_can_not_be_stood_on_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_gpt()
    bundle = saved(quantize_model(model), tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("deepseek.export.rungs.has_compiler", lambda: False)
    ladder = climb(bundle, rungs=["static", "openvino", "bf16", "int8 static", "int8 bundle"], record=False, **QUICK)
    assert ladder.ok and {rung.status for rung in ladder.rungs} == {"not run"}
    reasons = [rung.reason for rung in ladder.rungs]
    assert reasons[0].startswith("there is no C++ compiler") and "[export]" in reasons[1]
    assert reasons[2:] == ["the bundle is int8 already"] * 3
    plain = climb(saved(model, tmp_path / "float"), rungs=["int8 bundle"], record=False, **QUICK)
    assert plain.rungs[0].reason == "there is no float-int8 beside the bundle"


def test_weights_that_changed_fail_the_golden_samples(tmp_path: Path) -> None:
    bundle = saved(toy_gpt(), tmp_path / "bundle")
    golden = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))
    golden["answers"][0]["values"][0] += 100.0
    (bundle / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    rung = climb(bundle, rungs=["eager"], **QUICK).rungs[0]
    assert rung.status == "failed" and "answers its golden samples differently" in rung.reason


def test_bad_bundles_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        climb(tmp_path / "nowhere")
    bundle = saved(toy_gpt(), tmp_path / "bundle")
    with pytest.raises(ConfigError, match="did you mean 'int8 static'"):
        climb(bundle, rungs=["int8 statik"])
    weights = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(BundleError, match="cut short"):
        climb(bundle)
    (bundle / "model.safetensors").write_bytes(weights)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *question: False)
        with pytest.raises(StorageError, match="can't be written to"):
            climb(bundle, rungs=["eager"])
        assert climb(bundle, rungs=["eager"], record=False, **QUICK).ok, "a read-only bundle can be verified"
    assert climb(saved(toy_gpt(), tmp_path / "one.pt"), rungs=["eager"], **QUICK).ok


def test_the_command_measures_the_task_and_ends_as_the_ladder_does(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verify_bundle)
    from deepseek.data import Tokenizer  # after torch: the import of tokenizers is slow

    text = tmp_path / "text.txt"
    text.write_text("the list method returns a copy of each key in order\n" * 80, encoding="utf-8")
    tokenizer = Tokenizer.train([text.read_text(encoding="utf-8")], vocab_size=270)
    torch.manual_seed(0)
    ds.save(toy_gpt(vocab_size=270), tmp_path / "bundle", tokenizer=tokenizer)
    arguments = [str(tmp_path / "bundle"), "--data", str(text), "--seconds", "0.01", "--batches", "2"]
    done = CliRunner().invoke(app, [*arguments, "--rungs", "eager,int8 dynamic,int8 static", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [rung["name"] for rung in found["rungs"]] == ["eager", "int8 dynamic", "int8 static"]
    assert all(rung["figure"]["name"] == "perplexity" for rung in found["rungs"])
    golden = tmp_path / "bundle" / "golden.json"
    golden.write_text(golden.read_text(encoding="utf-8").replace('"tolerance": ', '"tolerance": -'), encoding="utf-8")
    done = CliRunner().invoke(app, [str(tmp_path / "bundle"), "--rungs", "eager,int8 bundle", "--seconds", "0.01"])
    assert done.exit_code == 1
    assert "eager: failed: " in done.stdout and "int8 bundle: not run: there is no bundle-int8" in done.stdout
    assert set(RUNGS) >= {"static", "onnxruntime int8", "openvino int8"}
