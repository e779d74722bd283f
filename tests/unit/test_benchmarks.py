"""The benchmarks' own logic, and each contestant once at toy size. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import harness, import_time, machine, scoreboard, step_overhead, train_gpt
from benchmarks.children import gpt_run, import_run, step_run
from benchmarks.children.step_clock import StepClock
from benchmarks.gpt import documents, matmul, ours, peers, prepare
from benchmarks.gpt.reference import ReferenceGPT
from benchmarks.gpt.workload import Workload
from benchmarks.harness import Contestant, Match, Role, Run
from benchmarks.scoreboard import Check, Options, Outcome

TEXTS = [
    f"Sentence {number} says that the value {number * 7} is not {number}. " * (1 + number % 9) for number in range(90)
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    shape = Workload(
        Path(), vocab_size=300, length=16, layers=2, width=32, heads=2, batch_size=4, steps=6, skip=2, compile=False
    )
    workload = prepare.write_workload(tmp_path_factory.mktemp("workload"), TEXTS, shape)
    return prepare.write_documents(workload, TEXTS, 80, 8)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    def write(body: str) -> tuple[str, ...]:
        path = tmp_path / f"contestant{len(list(tmp_path.glob('*.py')))}.py"
        start = "import json, sys\ndef report(value, **outputs):\n"
        start += "    json.dump({'value': value, 'outputs': outputs}, open(sys.argv[-1], 'w'))\n"
        path.write_text(start + textwrap.dedent(body))
        return (str(path),)

    return write


def played(values: dict[str, list[float]], roles: dict[str, Role] | None = None, **outputs: float) -> Match:
    """Return a match whose runs are given: round i of a contestant is its value i."""
    roles = roles or {}
    contestants = [Contestant(name, (), roles.get(name, "ours" if name == "ours" else "peer")) for name in values]
    match = Match(contestants, say=lambda line: None)
    for name, found in values.items():
        kept = {key: value for key, value in outputs.items()}
        match.runs[name] = [Run(index, value, kept, {}, 1.0, 0.0) for index, value in enumerate(found, 1)]
    return match


def outcome(ratio: float | None = 1.5, checks: tuple[Check, ...] = ()) -> Outcome:
    return Outcome("toy", "tokens/s", 150.0, {"peer": 100.0}, ratio, ratio, 1.1, checks)


# --- figures


def test_summary_gives_median_and_quartiles() -> None:
    found = harness.summarise([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.low, found.median, found.high, found.count) == (2.0, 3.0, 4.0, 5)
    assert harness.summarise([7.0]) == harness.Summary(7.0, 7.0, 7.0, 1)


def test_times_better_is_above_one_when_ours_wins_in_either_sense() -> None:
    assert harness.times_better(30.0, 20.0, higher_is_better=True) == pytest.approx(1.5)
    assert harness.times_better(20.0, 30.0, higher_is_better=False) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("values", "gap"),
    [([2.0, 2.0], 0.0), ([2.0, 2.1], 0.05), ([], math.inf), ([1.0, math.nan], math.inf), ([0.0, 1.0], math.inf)],
)
def test_relative_gap_is_infinite_where_values_can_not_be_compared(values: list[float], gap: float) -> None:
    assert harness.relative_gap(values) == pytest.approx(gap)


def test_best_peer_is_the_one_with_the_best_median_and_never_a_reference() -> None:
    values = {"ours": [9.0], "slow": [1.0, 1.0], "fast": [3.0, 2.0, 4.0], "bound": [99.0]}
    match = played(values, {"bound": "reference"})
    assert match.ranking("peer") == ["fast", "slow"]
    match.higher_is_better = False
    assert match.best("peer") == "slow"


def test_ratio_pairs_the_rounds_for_its_lower_quartile() -> None:
    match = played({"ours": [10.0, 20.0, 30.0], "peer": [10.0, 10.0, 10.0]})
    assert match.ratio("ours", "peer") == pytest.approx((2.0, 1.5))
    assert played({"ours": [10.0], "peer": []}).ratio("ours", "peer") is None


# --- matches


def test_contestants_take_turns_in_fresh_processes(tmp_path: Path, script: Callable[[str], tuple[str, ...]]) -> None:
    log = tmp_path / "log.txt"
    body = f"import os\nopen({str(log)!r}, 'a').write(f'{{sys.argv[1]}} {{os.getpid()}}\\n'); report(1.0, loss=2.0)"
    command = script(body)
    match = Match([Contestant(name, (*command, name)) for name in "AB"], say=lambda line: None)
    match.play(2)
    names, pids = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert names == ("A", "B", "A", "B")
    assert len(set(pids)) == 4
    assert match.outputs("loss") == {"A": 2.0, "B": 2.0}


def test_a_disturbed_run_is_played_again_and_one_that_stays_disturbed_fails(
    script: Callable[[str], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([0.5, 0.02, 0.4, 0.3, 0.6])
    monkeypatch.setattr(machine.ForeignLoad, "share", lambda self: next(loads))
    monkeypatch.setattr(harness, "_JUDGED_SECONDS", 0.0)
    match = Match([Contestant("A", script("report(1.0)"))], say=lambda line: None)
    match.play(1)
    assert [run.foreign_load for run in match.runs["A"]] == [0.02]
    assert scoreboard.quiet_check(match).ok
    match.play(1)
    assert [run.foreign_load for run in match.runs["A"]] == [0.02, 0.3], "three attempts, the quietest counts"
    assert not scoreboard.quiet_check(match).ok
    assert next(loads, None) is None


def test_a_failing_contestant_drops_out_with_what_it_said(script: Callable[[str], tuple[str, ...]]) -> None:
    good, bad = script("report(1.0)"), script("sys.exit('no such kernel')")
    match = Match([Contestant("good", good), Contestant("bad", bad)], say=lambda line: None)
    match.play(2)
    assert "no such kernel" in match.failures["bad"]
    assert len(match.runs["good"]) == 2 and not match.runs["bad"]
    assert not scoreboard.failure_check(match).ok


def test_a_contestant_without_its_package_is_not_started() -> None:
    match = Match([Contestant("peer", ("-c", "raise SystemExit(1)"), needs="no-such-distribution")])
    match.play(1)
    assert "pip install" in match.failures["peer"]


def test_a_contestant_that_hangs_is_ended(script: Callable[[str], tuple[str, ...]]) -> None:
    with pytest.raises(harness.ChildError, match="no result within"):
        harness.run_child(Contestant("slow", script("import time; time.sleep(60)")), timeout=0.5)


def test_children_start_without_our_allocator_and_thread_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    plain, tuned = harness.child_environment({}), harness.child_environment(harness.ALLOCATOR)
    assert "GLIBC_TUNABLES" not in plain
    assert "mmap_threshold=8589934592" in tuned["GLIBC_TUNABLES"]
    assert plain["OMP_NUM_THREADS"] == str(machine.physical_cores())


def test_each_peer_gets_the_allocator_and_its_plain_twin_counts_too() -> None:
    twins = harness.with_allocator([Contestant("ours", (), "ours"), Contestant("peer", ())], both=True)
    assert [(twin.name, twin.role, "GLIBC_TUNABLES" in twin.env) for twin in twins] == [
        ("ours", "ours", True),
        ("ours (plain malloc)", "reference", False),
        ("peer", "peer", True),
        ("peer (plain malloc)", "peer", False),
    ]
    assert len(harness.with_allocator(twins, both=False)) == len(twins)


# --- verdicts


def test_json_is_the_last_line_with_exactly_these_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoreboard, "RESULTS", tmp_path)
    match = played({"ours": [150.0], "peer": [100.0]})
    assert scoreboard.finish(match, outcome(), Options(json=True, quick=True, rounds=1)) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"name": "toy", "ours": 150, "peers": {"peer": 100}, "ratio": 1.5, "target": 1.1, "ok": True}
    record = json.loads((tmp_path / "toy.jsonl").read_text())
    assert record["runs"]["ours"][0]["value"] == 150.0
    assert {"hardware", "versions", "load_average", "created", "checks"} <= set(record)


def test_results_grow_by_one_strict_json_line_a_run(tmp_path: Path) -> None:
    for _ in range(2):
        scoreboard.append_record(tmp_path / "new" / "x.jsonl", {"a": math.nan, "b": [math.inf, 1.0]})
    lines = (tmp_path / "new" / "x.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": None, "b": [None, 1.0]}] * 2


@pytest.mark.parametrize(
    ("found", "ok"),
    [
        (outcome(), True),
        (outcome(ratio=1.0), False),
        (outcome(ratio=None), False),
        (outcome(checks=(Check("loss", 1, 2, False),)), False),
    ],
)
def test_ok_needs_the_ratio_and_every_check(
    found: Outcome, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoreboard, "RESULTS", tmp_path)
    match = played({"ours": [1.0], "peer": [1.0]})
    assert found.ok is ok
    assert scoreboard.finish(match, found, Options(json=False, quick=False, rounds=1)) == (0 if ok else 1)


def test_outputs_that_differ_fail_and_are_named() -> None:
    match = played({"ours": [1.0], "peer": [1.0]}, loss=2.0)
    assert scoreboard.agreement_check(match, "loss", 0.01).ok
    match.runs["peer"] = [replace(match.runs["peer"][0], outputs={"loss": 2.1})]
    check = scoreboard.agreement_check(match, "loss", 0.01)
    assert not check.ok
    assert "loss DIFFERS" in scoreboard.render(match, outcome(checks=(check,)))
    assert not scoreboard.agreement_check(match, "nothing", 0.01).ok


def test_options_take_fewer_rounds_when_quick(capsys: pytest.CaptureFixture[str]) -> None:
    def parse(*argv: str) -> Options:
        return scoreboard.parse_options(argparse.ArgumentParser(), argv, rounds=5, quick_rounds=2)[0]

    assert parse("--quick", "--json") == Options(json=True, quick=True, rounds=2)
    assert parse("--rounds", "3").rounds == 3
    with pytest.raises(SystemExit):
        parse("--rounds", "0")
    assert "at least 1" in capsys.readouterr().err


def test_the_finals_are_between_ours_the_two_best_peers_and_what_is_kept(
    script: Callable[[str], tuple[str, ...]],
) -> None:
    command = script("report(float(sys.argv[1]))")
    values: dict[str, tuple[float, Role]] = {
        "ours": (9, "ours"),
        "ours (plain malloc)": (8, "reference"),
        "a": (1, "peer"),
        "b": (3, "peer"),
        "c": (2, "peer"),
        "torch-mm": (99, "reference"),
    }
    contestants = [Contestant(name, (*command, str(value)), role) for name, (value, role) in values.items()]
    match = Match(contestants, say=lambda line: None)
    assert train_gpt._play(match, Options(False, False, rounds=2), keep=("torch-mm",)) == "b"
    twice = {name for name, runs in match.runs.items() if len(runs) == 2}
    assert twice == {"ours", "b", "c", "torch-mm"}


def test_held_out_loss_is_held_against_the_peer_with_as_many_tokens() -> None:
    match = played({"ours": [1.0], "documents-hf": [1.0], "documents-hf-matched": [1.0]}, held_out_loss=4.0)
    assert train_gpt._held_out_check(match).ok
    match.runs["ours"] = [replace(match.runs["ours"][0], outputs={"held_out_loss": 4.3})]
    assert not train_gpt._held_out_check(match).ok


def test_step_overhead_allows_30_us_or_one_percent() -> None:
    match = played({"ours": [40.0], "peer": [200.0]})
    for bare, ok in ((1000.0, False), (5000.0, True)):
        match.runs["ours"] = [replace(match.runs["ours"][0], details={"bare_us": bare})]
        assert step_overhead.limit_check(match).ok is ok
    match.runs["ours"] = [replace(match.runs["ours"][0], value=-3.0)]
    assert step_overhead.verdict(match, []).ratio == pytest.approx(200.0)


def test_import_time_fails_when_torch_is_loaded() -> None:
    match = played({"deepseek": [0.05], "torch": [1.0]}, {"deepseek": "ours"}, modules=40.0, loads_torch=0.0)
    match.higher_is_better = False
    assert import_time.verdict(match).ok
    match.runs["deepseek"] = [replace(match.runs["deepseek"][0], outputs={"modules": 40.0, "loads_torch": 1.0})]
    assert not import_time.verdict(match).ok


# --- machine


def test_machine_facts_are_plain_json() -> None:
    facts = json.loads(json.dumps({**machine.hardware(), **machine.versions()}))
    assert facts["cores"] >= 1 and facts["torch"].startswith(torch.__version__.split("+")[0])
    share = machine.wait_until_quiet(limit=1.0, patience=0.0)
    assert share is None or 0.0 <= share <= 1.0


# --- the GPT workload


def test_batches_are_consecutive_windows_with_shifted_labels(toy: Workload) -> None:
    batches = toy.batches()
    inputs = torch.cat([batch["input_ids"].flatten() for batch in batches])
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    assert len(batches) == toy.steps and batches[0]["input_ids"].shape == (toy.batch_size, toy.length)
    assert torch.equal(inputs[1:], labels[:-1])
    assert toy == Workload.load(toy.folder)


def test_documents_are_apart_and_end_with_the_end_token(toy: Workload) -> None:
    train, held_out = toy.documents(), toy.documents("held_out")
    lines = [json.loads(line)["text"] for line in (toy.folder / "train.jsonl").read_text().splitlines()]
    assert len(train) == len(lines) and len(held_out) == 8
    assert all(document[-1] == toy.eos_id and toy.pad_id not in document for document in train)
    assert not {tuple(document) for document in train} & {tuple(document) for document in held_out}


def test_corpus_is_tiny_shakespeare_where_the_test_data_is(tmp_path: Path) -> None:
    folder = tmp_path / "text" / "tinyshakespeare"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text("First:\nHear me.\n\nAll:\nSpeak, speak.\n\n")
    assert list(prepare.source_text(str(tmp_path))) == ["First:\nHear me.", "All:\nSpeak, speak."]


def test_matmul_counts_the_flops_of_every_weight_matrix_once_forward_and_twice_backward(toy: Workload) -> None:
    model = ReferenceGPT(toy)
    matrices = [module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear)]
    expected = 6 * toy.tokens_per_step * (sum(matrices) + model.token.weight.numel())
    assert sum(product.flops for product in matmul.products(toy)) == expected
    found = matmul.matmul_run(toy, repeats=1)
    assert isinstance(found["value"], float) and found["value"] > 0


def test_hf_model_and_reference_give_the_same_logits(toy: Workload) -> None:
    pytest.importorskip("transformers")
    tokens = toy.batches()[0]["input_ids"]
    with torch.no_grad():
        theirs = peers.hf_model(toy).eval()(input_ids=tokens).logits
        reference, loss = peers.reference_model(toy)(tokens)
    assert loss is None
    torch.testing.assert_close(theirs, reference, atol=1e-5, rtol=1e-5)


def test_our_model_and_reference_give_the_same_logits(toy: Workload) -> None:
    tokens = toy.batches()[0]["input_ids"]
    with torch.no_grad():
        reference, _ = peers.reference_model(toy)(tokens)
        torch.testing.assert_close(ours.our_model(toy)(tokens), reference, atol=1e-5, rtol=1e-5)


def test_the_raw_loop_trains_and_its_steps_are_counted(toy: Workload) -> None:
    found = gpt_run.run("raw-loop", toy)
    outputs, details = found["outputs"], found["details"]
    assert isinstance(outputs, dict) and isinstance(details, dict)
    assert outputs["first_loss"] == pytest.approx(math.log(toy.vocab_size), rel=0.05)
    assert details["losses"][-1] < details["losses"][0]
    assert len(details["step_seconds"]) == toy.steps


@pytest.mark.parametrize(
    ("name", "package"),
    [("hf-trainer", "transformers"), ("lightning", "lightning")],
)
def test_peers_reach_the_loss_of_the_raw_loop(toy: Workload, name: str, package: str) -> None:
    pytest.importorskip(package, exc_type=ImportError)
    found = _in_process_of_its_own(toy, name)
    reference = gpt_run.run("raw-loop", toy)["outputs"]
    assert isinstance(reference, dict)
    assert found["outputs"]["final_loss"] == pytest.approx(reference["final_loss"], rel=0.01)


@pytest.mark.parametrize("name", ["ours", "documents-ours"])
def test_ours_trains_the_same_model(toy: Workload, name: str) -> None:
    pytest.importorskip("deepseek.train.trainer")
    found = _in_process_of_its_own(toy, name)
    reference = gpt_run.run("raw-loop", toy)["outputs"]
    assert isinstance(reference, dict)
    assert found["outputs"]["first_loss"] == pytest.approx(reference["first_loss"], rel=0.02)
    if name == "ours":
        assert found["outputs"]["final_loss"] == pytest.approx(reference["final_loss"], rel=0.01)


def test_padded_documents_count_targets_without_padding(toy: Workload) -> None:
    pytest.importorskip("transformers")
    found = _in_process_of_its_own(toy, "documents-hf")
    lengths = [min(len(document), toy.length) for document in toy.documents()]
    steps = int(found["outputs"]["steps"])
    assert steps == toy.skip + documents.cycle(len(lengths), toy.batch_size)
    most = sum(sorted(lengths, reverse=True)[: steps * toy.batch_size]) - steps * toy.batch_size
    assert 0 < found["details"]["target_tokens"] <= most
    assert found["outputs"]["first_loss"] == pytest.approx(math.log(toy.vocab_size), rel=0.05)


def test_held_out_loss_is_the_mean_over_all_targets_of_the_documents(toy: Workload) -> None:
    model = peers.reference_model(toy)

    def logits(tokens: Tensor) -> Tensor:
        found: Tensor = model(tokens)[0]
        return found

    total, count = 0.0, 0
    with torch.no_grad():
        for document in toy.documents("held_out"):
            ids = torch.from_numpy(document[: toy.length].astype("int64"))[None]
            scores = logits(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])
            total, count = total - float(scores.sum()), count + scores.numel()
    assert documents.held_out_loss(logits, toy, rows=3) == pytest.approx(total / count, rel=1e-5)


def test_packing_counts_only_targets_inside_a_document(toy: Workload) -> None:
    ids = torch.tensor([[5, 6, toy.eos_id, 7, 8]])
    labels = torch.tensor([[6, toy.eos_id, 7, 8, 9]])
    assert ours.useful_targets({"input_ids": ids, "labels": labels}, toy.eos_id) == 4
    isolated = labels.masked_fill(ids == toy.eos_id, -100)
    assert ours.useful_targets({"input_ids": ids, "labels": isolated}, toy.eos_id) == 4


# --- steps and imports


def test_the_clock_stamps_every_step_of_any_optimizer() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.SGD([weight], lr=0.1), torch.optim.AdamW([weight], lr=0.1)]
    with StepClock() as clock:
        for optimizer in (*optimizers, *optimizers):
            weight.grad = torch.ones(2)
            optimizer.step()
    optimizers[0].step()
    assert len(clock.step_seconds()) == 4


def test_mean_step_leaves_out_the_slowest_hundredth() -> None:
    assert step_run.mean_step([1.0] * 199 + [500.0]) == pytest.approx(1.0)
    assert step_run.mean_step([1.0] * 90 + [2.0] * 10) == pytest.approx(1.1, rel=0.02)


def test_step_contestants_end_where_the_bare_loop_ends() -> None:
    found = step_run.run("bare-loop", steps=20, skip=2, turns=1)
    outputs = found["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["final_loss"] == outputs["bare_final_loss"] < math.log(step_run.VOCABULARY) + 0.1


def test_import_run_counts_the_modules_it_brings() -> None:
    found = import_run.run("wave")["outputs"]
    assert isinstance(found, dict)
    assert found["modules"] >= 1 and found["loads_torch"] == 0


@pytest.mark.parametrize("name", ["train_gpt", "step_overhead", "import_time"])
def test_every_benchmark_explains_itself(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    shown = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True).stdout
    assert "--json" in shown and "--quick" in shown


def _in_process_of_its_own(workload: Workload, name: str) -> dict[str, dict[str, float]]:
    """Run a contestant as the harness does: it brings warnings and global settings that tests should not get."""
    contestant = Contestant(name, ("-m", "benchmarks.children.gpt_run", name, str(workload.folder)))
    return harness.run_child(contestant, timeout=110)
