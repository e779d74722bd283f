"""The search for a budget on a small trained model: what it finds, what it refuses, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek import bundle
from deepseek.compress import CompressConfig
from deepseek.compress.search import SearchReport, search_budget
from deepseek.compress.search.run import Progress
from deepseek.errors import ConfigError, QuantizationError
from deepseek.tasks import Classification
from deepseek.tasks.task import evaluate
from tests.toy_compress import spots, trained

VAL, TRAIN = spots(384, seed=2), spots(1024, seed=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("budget") / "bundle")


def config(**values: object) -> CompressConfig:
    usual = {"runtimes": ["eager"], "max_drop": "3%", "training_steps": 40, "learning_rate": 3e-3}
    return CompressConfig(**{**usual, **values})  # type: ignore[arg-type]  # named by each test


def names(report: SearchReport) -> list[str]:
    return [point["name"] for point in report.points]


def test_the_first_rung_that_meets_the_budget_ends_the_search(original: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    report = search_budget(original, tmp_path / "small", VAL, config=config(size="10kB"), on_point=told.append)
    assert names(report) == ["fp32", "bf16", "int8 weight_only", "int8 dynamic", "int8 static", "int4"]
    assert [one.candidate for one in told] == names(report)
    chosen = next(point for point in report.points if point["name"] == report.chosen)
    assert chosen["bytes"] <= 10_000 and chosen["drop"] <= 0.03 and chosen["fits"]
    good = [point for point in report.points if point["fits"]]
    assert chosen["latency_ms"] == min(point["latency_ms"] for point in good)
    small = bundle.load(tmp_path / "small", device="cpu")
    small.verify()
    assert evaluate(small.model, VAL, Classification()) == pytest.approx(chosen["figures"])
    assert small.config.labels == bundle.load(original, device="cpu").config.labels
    weights = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert abs(weights - chosen["bytes"]) < 300  # the file's header
    stored = json.loads((tmp_path / "small" / "report.json").read_text(encoding="utf-8"))
    assert stored["compress"]["chosen"] == report.chosen == stored["compress"]["rows"][-1]["form"]


def test_a_tight_budget_is_met_by_a_pruned_model_that_learned_from_the_original(original: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    report = search_budget(original, tmp_path / "small", VAL, config=config(size="4.6kB"), train_data=TRAIN)
    assert report.chosen is not None and report.chosen.startswith("pruned")
    chosen = next(point for point in report.points if point["name"] == report.chosen)
    assert chosen["bytes"] <= 4_600 and chosen["drop"] <= 0.03
    layer = bundle.load(tmp_path / "small", device="cpu").model.get_submodule("layers.1.0")
    assert layer.get_buffer("weight").shape[0] < 64


def test_an_impossible_budget_is_refused_with_the_nearest_point(original: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="(?s)nothing meets the budget; no bundle.*nearest is.*0.001 MB") as why:
        search_budget(original, tmp_path / "small", VAL, config=config(size="1kB", latency="1s"))
    assert not (tmp_path / "small").exists()
    found = json.loads((tmp_path / "small-search" / "front.json").read_text(encoding="utf-8"))
    near = found["search"]["nearest"]
    assert found["chosen"] is None and near in str(why.value) and near in found["search"]["front"]
    smallest = min((point for point in found["search"]["points"] if "bytes" in point), key=lambda one: one["bytes"])
    assert next(p for p in found["search"]["points"] if p["name"] == near)["bytes"] == smallest["bytes"]
    assert "qat" not in json.dumps(found)  # without training data nothing is learned


def test_another_budget_reads_the_same_journal(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuantizationError):
        search_budget(original, tmp_path / "small", VAL, config=config(size="1kB"))
    told: list[Progress] = []
    report = search_budget(original, tmp_path / "small", VAL, config=config(size="20kB"), on_point=told.append)
    assert not [one for one in told if one.candidate == "fp32"]
    assert report.chosen is not None
    other = spots(64, seed=9)  # other data: nothing of the journal holds
    search_budget(original, tmp_path / "small", other, config=config(size="20kB"), on_point=told.append)
    assert [one for one in told if one.candidate == "fp32"]


def test_a_search_whose_time_is_out_says_so_and_goes_on_later(original: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="(?s)in the time given.*it goes on"):
        search_budget(original, tmp_path / "small", VAL, config=config(size="10kB", time="0.001s"))
    report = search_budget(original, tmp_path / "small", VAL, config=config(size="10kB"))
    assert report.chosen is not None and report.finished


def test_a_candidate_that_fails_is_written_down_and_passed_over(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepseek.compress.search import workshop

    make = workshop.quiet_form

    def broken(model: Any, quant: Any, *rest: Any) -> Any:
        if quant.describe() == "int8 dynamic":
            raise RuntimeError("no kernel for this\nand a trace")
        return make(model, quant, *rest)

    monkeypatch.setattr(workshop, "quiet_form", broken)
    report = search_budget(original, tmp_path / "small", VAL, config=config(size="10kB"))
    errors = {point["name"]: point["error"] for point in report.points if "error" in point}
    assert errors == {"int8 dynamic": "no kernel for this"} and report.chosen is not None


def test_what_can_not_be_searched_is_refused_first(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no budget"):
        search_budget(original, tmp_path / "small", VAL, config=config())
    with pytest.raises(ConfigError, match="only once"):
        search_budget(original, tmp_path / "small", iter(VAL), config=config(size="1MB"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="not a bundle"):
        search_budget(original, tmp_path / "mine", VAL, config=config(size="1MB"))


def test_a_damaged_end_of_the_journal_costs_one_candidate(original: Path, tmp_path: Path) -> None:
    search_budget(original, tmp_path / "small", VAL, config=config(size="10kB"))
    journal = tmp_path / "small-search" / "journal.jsonl"
    text = journal.read_text(encoding="utf-8")
    journal.write_text(text[: text.rstrip().rindex("\n") + 30], encoding="utf-8")
    told: list[Progress] = []
    report = search_budget(original, tmp_path / "small", VAL, config=config(size="10kB"), on_point=told.append)
    assert [one.candidate for one in told] == [names(report)[-1]]
