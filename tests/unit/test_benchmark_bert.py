"""`train_bert` at toy size: what is hidden, and that all contestants start alike and learn alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import train_bert
from benchmarks.bert import ours, peers, prepare
from benchmarks.bert.workload import IGNORE, Workload, by_places
from benchmarks.children import bert_run
from benchmarks.harness import Match, Run

TEXTS = [
    f"Sentence {number} says that the value {number * 7} is not {number}. " * (1 + number % 9) for number in range(60)
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    shape = Workload(
        Path(), vocab_size=400, length=24, layers=2, width=32, heads=2, batch_size=4, steps=5, skip=2, compile=False
    )
    return prepare.write_workload(tmp_path_factory.mktemp("bert"), TEXTS, shape)


def test_fifteen_in_a_hundred_tokens_of_text_are_hidden_and_no_other(toy: Workload) -> None:
    for batch in toy.batches():
        ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
        hidden = labels != IGNORE
        assert not hidden[mask == 0].any() and (ids[:, 0] == prepare.CLS).all()
        assert (labels[hidden] >= prepare.FIRST).all()
        text = (mask.sum(1) - 2).double()
        wanted = (text * 0.15).round().clamp(1, toy.places)
        assert torch.equal(hidden.sum(1).double(), wanted)
        assert ((ids == prepare.PAD) == (mask == 0)).all()
    assert sum(toy.tokens()) == sum(int(batch["attention_mask"].sum()) for batch in toy.batches())


def test_of_the_hidden_most_are_masked_some_other_and_some_stay() -> None:
    workload = Workload(Path(), length=512)
    ids = torch.randint(prepare.FIRST, 9000, (200, 512), generator=torch.Generator().manual_seed(1))
    inputs, labels = prepare.hide(ids, workload, 8000)
    hidden = labels != IGNORE
    assert torch.equal(inputs[~hidden], ids[~hidden]) and torch.equal(labels[hidden], ids[hidden])
    masked, stay = (inputs[hidden] == prepare.MASK).double().mean(), (inputs == ids)[hidden].double().mean()
    assert masked == pytest.approx(0.8, abs=0.02) and stay == pytest.approx(0.1, abs=0.02)


def test_places_say_the_same_as_labels(toy: Workload) -> None:
    batch = toy.batches()[0]
    found = by_places(batch, toy.places)
    rebuilt = torch.full_like(batch["labels"], IGNORE)
    for row, (places, labels) in enumerate(zip(found["masked_positions"], found["labels"], strict=True)):
        for place, label in zip(places.tolist(), labels.tolist(), strict=True):
            if label != IGNORE:
                rebuilt[row, place] = label
    assert torch.equal(rebuilt, batch["labels"])
    with pytest.raises(SystemExit, match="more than 1"):
        by_places(batch, 1)


def test_every_contestant_trains_and_the_losses_agree(toy: Workload, tmp_path: Path) -> None:
    found = {}
    for name in bert_run.CONTESTANTS:
        bert_run.main([name, str(toy.folder), str(tmp_path / name)])
        found[name] = json.loads((tmp_path / name).read_text())
    losses = {name: result["outputs"]["first_loss"] for name, result in found.items()}
    assert losses == {name: pytest.approx(losses["ours"], rel=0.02) for name in losses}
    assert all(result["value"] > 0 and len(result["details"]["losses"]) == 5 for result in found.values())


def test_without_dropout_ours_learns_as_transformers_does(tmp_path: Path) -> None:
    shape = Workload(
        Path(),
        vocab_size=400,
        length=24,
        layers=2,
        width=32,
        heads=2,
        dropout=0.0,
        batch_size=4,
        steps=6,
        compile=False,
    )
    workload = prepare.write_workload(tmp_path, TEXTS, shape)
    assert ours.train_eager_fp32(workload) == pytest.approx(peers.hf_as_it_comes(workload), rel=1e-4)


def test_the_verdict_needs_both_ratios() -> None:
    match = Match(train_bert.contestants(Path("unused"), both=False), say=lambda line: None)
    for name, value in {"ours": 400.0, "hf-trainer": 300.0, "raw-loop": 320.0, train_bert.EAGER: 100.0}.items():
        outputs = {"first_loss": 10.3, "mean_loss": 10.0, "final_loss": 9.8}
        match.runs[name].append(Run(1, value, outputs, {}, 5.0, 0.0))
    outcome = train_bert.verdict(match)
    assert outcome.ratio == pytest.approx(1.25) and outcome.ok
    match.runs[train_bert.EAGER][0] = Run(1, 200.0, outputs, {}, 5.0, 0.0)
    assert not train_bert.verdict(match).ok


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the workload needs"):
        prepare.write_workload(tmp_path, TEXTS[:1], Workload(tmp_path, vocab_size=400, steps=99))
