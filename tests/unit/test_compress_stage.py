"""The compress stage on a tiny GPT: what it writes, what it measures, and when it writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepseek import bundle
from deepseek.compress import CompressConfig, compress_bundle
from deepseek.errors import BundleError, ConfigError, QuantizationError
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.nn.int8_linear import Int8Linear
from deepseek.quantization import quantize_model

FACTS = {
    "form",
    "bytes",
    "figures",
    "drop",
    "latency_ms",
    "val_loss",
    "perplexity",
    "prefill_ms",
    "token_ms",
}
LATENCY = {"latency_prompt": 4, "latency_tokens": 3, "latency_repeats": 1}


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    ids = torch.randint(64, (count, 2, 17))
    return [{"input_ids": part[:, :-1], "labels": part[:, 1:]} for part in ids]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    model = GPT(GPTConfig(vocab_size=64, max_length=16, num_layers=1, d_model=32, num_heads=2))
    return bundle.save(model, tmp_path / "bundle", report={"train": {"steps": 7}})


def config(**values: object) -> CompressConfig:
    return CompressConfig(**{**LATENCY, **values})


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only", "bf16"])
def test_every_method_leaves_a_smaller_bundle_that_answers_alike(method: str, original: Path, tmp_path: Path) -> None:
    report = compress_bundle(original, tmp_path / "small", batches(), config=config(method=method))
    loaded = bundle.load(tmp_path / "small", device="cpu")
    loaded.verify()
    assert report.chosen == ("bf16" if method == "bf16" else f"int8 {method}")
    assert [row["form"] for row in report.rows] == ["fp32", "bf16", *([report.chosen] if method != "bf16" else [])]
    written = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert abs(report.rows[-1]["bytes"] - written) < 512  # the headers differ
    assert written < (0.65 if method == "bf16" else 0.45) * (original / "model.safetensors").stat().st_size
    with torch.no_grad():
        ids = batches(1)[0]["input_ids"]
        wanted = bundle.load(original, device="cpu").model(ids)
        torch.testing.assert_close(loaded.model(ids).float(), wanted, atol=0.05, rtol=0.05)


def test_rows_hold_quality_bytes_and_time_for_the_report(original: Path, tmp_path: Path) -> None:
    report = compress_bundle(original, tmp_path / "small", batches(), config=config())
    for row in report.rows:
        assert set(row) == FACTS
        assert set(row["token_ms"]) == {"median", "p10", "p90"}
        assert row["perplexity"] == pytest.approx(torch.tensor(row["val_loss"]).double().exp().item())
    stored = json.loads((tmp_path / "small" / "report.json").read_text(encoding="utf-8"))
    assert stored["train"] == {"steps": 7}
    assert stored["compress"]["chosen"] == "int8 dynamic"
    assert stored["compress"]["rows"] == [dict(row) for row in report.rows]


def test_a_model_that_gets_too_much_worse_is_not_written(original: Path, tmp_path: Path) -> None:
    model, ids = bundle.load(original, device="cpu").model, batches(1)[0]["input_ids"]
    with torch.no_grad():
        gain = quantize_model(model)(ids).log_softmax(-1) - model(ids).log_softmax(-1)
    worst = [{"input_ids": ids, "labels": gain.argmin(-1)}]  # the answers that quantization makes less likely
    with pytest.raises(QuantizationError, match="(?s)too much worse.*max_perplexity_increase.*skip"):
        compress_bundle(original, tmp_path / "small", worst, config=config(max_perplexity_increase=0.0))
    assert not (tmp_path / "small").exists()
    compress_bundle(original, tmp_path / "small", worst, config=config(max_perplexity_increase=1.0))


def test_batches_that_can_be_read_only_once_are_refused(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only once"):
        compress_bundle(original, tmp_path / "small", iter(batches()), config=config())
    with pytest.raises(BundleError, match="does not exist"):
        compress_bundle(tmp_path / "nowhere", tmp_path / "small", batches(), config=config())


def test_a_wrong_combination_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="method"):
        CompressConfig(method="int3")  # type: ignore[arg-type]  # what a wrong recipe says
    with pytest.raises(ConfigError, match="max_perplexity_increase"):
        CompressConfig(max_perplexity_increase=-1)


def test_skipped_layers_stay_float_in_the_written_bundle(original: Path, tmp_path: Path) -> None:
    compress_bundle(original, tmp_path / "small", batches(), config=config(skip=["blocks.0.attention.*"]))
    model = bundle.load(tmp_path / "small", device="cpu").model
    assert type(model.get_submodule("blocks.0.attention.qkv")) is nn.Linear
    assert isinstance(model.get_submodule("blocks.0.feed_forward.up"), Int8Linear)
