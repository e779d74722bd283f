"""`gpu_train`: its arithmetic against numbers worked out by hand, each contestant at toy size on the CPU, no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_train
from benchmarks.children import gpu_run
from benchmarks.gpt.reference import ReferenceGPT
from benchmarks.gpt.workload import Workload
from benchmarks.gpu import device, prepare
from benchmarks.gpu.flops import bf16_peak, matrix_weights, mfu, step_flops
from benchmarks.gpu.timeline import merge, summarise
from benchmarks.harness import Match, Run

US = 1000


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    shape = Workload(
        Path(), vocab_size=300, length=16, layers=2, width=32, heads=2, batch_size=4, steps=6, skip=1, compile=False
    )
    return prepare.write_workload(tmp_path_factory.mktemp("gpu"), shape)


def test_the_weights_in_products_are_those_of_the_model(toy: Workload) -> None:
    model = ReferenceGPT(toy)
    linear = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "position" not in name)
    assert matrix_weights(toy.layers, toy.width, toy.vocab_size) == linear  # the tied embedding is the head's


def test_flops_of_a_step_are_those_of_its_products_one_by_one() -> None:
    layers, width, vocab, length, rows = 24, 1536, 50265, 2048, 8
    found = step_flops(layers=layers, width=width, vocab_size=vocab, length=length, rows=rows)
    products = 0
    for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
        products += layers * 2 * rows * length * outputs * inputs
    products += 2 * rows * length * vocab * width
    scores = layers * rows * 2 * (2 * length * length * width)  # queries by keys, weights by values
    assert found.full == 3 * (products + scores)
    assert found.causal == 3 * products + 3 * scores // 2
    assert found.weights == pytest.approx(74.4e12, rel=0.01)


def test_mfu_is_a_share_of_the_peak_of_the_gpu_named() -> None:
    assert bf16_peak("NVIDIA H200") == bf16_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert bf16_peak("NVIDIA H100 PCIe") == 756e12 and bf16_peak("NVIDIA L40S") == 362e12
    assert bf16_peak("Unheard Of 9000") is None and mfu(10, 1.0, None) is None
    assert mfu(989 * 10**12, 2.0, 989e12) == pytest.approx(0.5)


def test_gaps_and_busy_share_of_a_timeline() -> None:
    spans = [(0, 10 * US), (12 * US, 20 * US), (12 * US, 15 * US), (19 * US, 30 * US), (35 * US, 40 * US)]
    found = summarise(spans)
    assert (found.kernels, found.gaps, found.total_us) == (5, 2, 40.0)
    assert found.busy_share == pytest.approx((10 + 18 + 5) / 40)
    assert (found.median_gap_us, found.p99_gap_us, found.max_gap_us) == (2.0, 5.0, 5.0)


def test_one_long_gap_in_a_hundred_does_not_count_two_do() -> None:
    def spans(long: int) -> list[tuple[int, int]]:
        starts, now = [], 0
        for index in range(101):
            starts.append((now, now + 100 * US))
            now += 100 * US + (50 * US if index < long else 2 * US)
        return starts

    assert summarise(spans(1)).p99_gap_us == 2.0 and summarise(spans(1)).max_gap_us == 50.0
    assert summarise(spans(2)).p99_gap_us == 50.0


def test_a_timeline_of_one_kernel_of_none_and_of_nonsense() -> None:
    assert summarise([(5, 9)]) == (1, 0.004, 1.0, 0, 0.0, 0.0, 0.0)
    assert merge([(3, 4), (0, 3)]) == [(0, 4)]
    with pytest.raises(ValueError, match="no kernel"):
        summarise([])
    with pytest.raises(ValueError, match="before its start"):
        merge([(4, 3)])


@pytest.mark.parametrize("name", ["ours", "hf-trainer", "raw-loop"])
def test_each_contestant_trains_and_steps_are_timed(name: str, toy: Workload, tmp_path: Path) -> None:
    gpu_run.main([name, str(toy.folder), str(tmp_path / "result.json")])
    found = json.loads((tmp_path / "result.json").read_text())
    details = found["details"]
    assert found["value"] > 0 and len(details["losses"]) == 6 and len(details["step_seconds"]) == 3
    assert found["outputs"]["first_loss"] == pytest.approx(5.7, abs=0.2)
    assert details["device"] == "cpu" and details["mfu"] is details["timeline"] is None


def test_without_a_gpu_nothing_is_measured_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "find", lambda: None)
    monkeypatch.setattr("benchmarks.scoreboard.RESULTS", tmp_path)
    assert gpu_train.main(["--json"]) == 77
    said = capsys.readouterr().out.strip().splitlines()
    assert "no GPU: nothing measured" in said[0]
    line = json.loads(said[-1])
    assert line["ok"] is None and line["ours"] is None and line["ratio"] is None and not list(tmp_path.iterdir())


def test_the_verdict_wants_half_the_peak_a_busy_gpu_and_short_gaps() -> None:
    def outcome(**changes: float) -> bool:
        values = {"mfu": 0.52, "busy_share": 0.97, "p99_gap_us": 6.0, **changes}
        timeline = {name: values[name] for name in ("busy_share", "p99_gap_us")}
        match = Match([gpu_train._contestant(name, Path("unused")) for name in gpu_train.ROLES], say=lambda line: None)
        for name, speed in {"ours": 110.0, "hf-trainer": 90.0, "raw-loop": 100.0, "ours-fp8": 120.0}.items():
            details = {"mfu": values["mfu"], "timeline": timeline}
            match.runs[name].append(Run(1, speed, {"first_loss": 10.8, "final_loss": 10.0}, details, 5.0, 0.0))
        found = gpu_train.verdict(match)
        assert found.ratio == pytest.approx(1.1)
        return found.ok

    assert outcome()
    assert not outcome(mfu=0.49) and not outcome(busy_share=0.94) and not outcome(p99_gap_us=10.5)
