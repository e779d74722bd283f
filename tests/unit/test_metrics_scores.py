"""Metrics against loops over their definitions, and added up batch by batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepseek.errors import ConfigError, DataError
from deepseek.metrics.calibration import CalibrationError
from deepseek.metrics.classification import Accuracy, count_correct, score_classes
from deepseek.metrics.confusion import ConfusionMatrix, confusion
from deepseek.metrics.detection import AveragePrecision, Detections, Objects, score_detections
from deepseek.metrics.error_rate import ErrorCount, word_error_rate
from deepseek.metrics.regression import RegressionErrors
from deepseek.metrics.retrieval import RetrievalRecall
from deepseek.metrics.roc import RocAuc


def answers(items: int = 200, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return probabilities and labels; some labels are -100."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (items,), generator=generator)
    logits = torch.randn(items, classes, generator=generator)
    logits[torch.arange(items), labels] += 1
    labels[torch.rand(items, generator=generator) < 0.1] = -100
    return logits.softmax(-1), labels


def test_accuracy_counts_labels_among_the_best() -> None:
    chances, labels = answers()
    for top in (1, 3, 9):
        accuracy, right, total = Accuracy(top), 0, 0
        for row, label in zip(chances.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                total += 1
                right += label in sorted(range(6), key=lambda k: -row[k])[:top]
        for part in (slice(0, 70), slice(70, None)):
            accuracy.update(chances[part], labels[part])
        assert accuracy.result() == right / total
        assert count_correct(chances, labels, top) == right


def test_scores_of_classes_by_their_definitions() -> None:
    chances, labels = answers()
    matrix = ConfusionMatrix(6)
    for part in (slice(0, 70), slice(70, None)):
        matrix.update(chances[part].argmax(-1), labels[part])
    pairs = [(w, f) for w, f in zip(labels.tolist(), chances.argmax(-1).tolist(), strict=True) if w >= 0]
    scores = score_classes(matrix.result())
    assert scores.accuracy == sum(w == f for w, f in pairs) / len(pairs)
    for label in range(6):
        hits = sum(w == f == label for w, f in pairs)
        found, wanted = sum(f == label for _, f in pairs), sum(w == label for w, _ in pairs)
        assert scores.precision[label] == pytest.approx(hits / found)
        assert scores.recall[label] == pytest.approx(hits / wanted)
        precision, recall = hits / found, hits / wanted
        assert scores.f1[label] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores.macro_f1 == pytest.approx(scores.f1.mean())


def test_a_class_that_is_nowhere_is_in_no_mean() -> None:
    counts = confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 4)
    scores = score_classes(counts)
    assert [math.isnan(value) for value in scores.f1] == [False, False, True, True]
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 / 3) / 2)
    only_found = score_classes(confusion(torch.tensor([1]), torch.tensor([0]), 2))
    assert only_found.macro_f1 == 0 and only_found.accuracy == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    yes, no = [s for s, positive in rows if positive], [s for s, positive in rows if not positive]
    area = RocAuc()
    for score, positive in rows:
        area.update(torch.tensor([float(score)]), torch.tensor([positive]))
    if not yes or not no:
        with pytest.raises(DataError, match="both answers"):
            area.result()
        return
    wanted = sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))
    assert area.result() == pytest.approx(wanted)


def test_calibration_by_its_definition() -> None:
    chances, labels = answers(items=400)
    error, bins = CalibrationError(bins=10), [[0.0, 0.0, 0.0] for _ in range(10)]
    for part in (slice(0, 130), slice(130, None)):
        error.update(chances[part], labels[part])
    for row, label in zip(chances.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            number = next(b for b in range(10) if max(row) <= (b + 1) / 10)
            bins[number] = [
                a + b for a, b in zip(bins[number], (1, max(row), row.index(max(row)) == label), strict=True)
            ]
    total = sum(items for items, _, _ in bins)
    wanted = sum(items / total * abs(sure / items - right / items) for items, sure, right in bins if items)
    assert error.result() == pytest.approx(wanted, rel=1e-6)
    sure = CalibrationError()
    sure.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert sure.result() == 0.5
    with pytest.raises(ConfigError):
        CalibrationError(0)


def test_regression_joins_batches_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(101, generator=generator, dtype=torch.float64) + 1e6  # a mean that would eat the digits
    found = wanted + torch.randn(101, generator=generator, dtype=torch.float64) / 2
    wanted[7] = math.nan
    errors = RegressionErrors()
    for start in range(0, 101, 17):
        errors.update(found[start : start + 17], wanted[start : start + 17])
    known = ~torch.isnan(wanted)
    off = (found - wanted)[known]
    spread = (wanted[known] - wanted[known].mean()).square().sum()
    scores = errors.result()
    assert scores.mae == pytest.approx(float(off.abs().mean()))
    assert scores.rmse == pytest.approx(float(off.square().mean().sqrt()))
    assert scores.r2 == pytest.approx(float(1 - off.square().sum() / spread))
    equal = RegressionErrors()
    equal.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert math.isnan(equal.result().r2) and set(equal.result().report()) == {"mae", "rmse"}


def test_retrieval_ranks_all_against_all() -> None:
    generator = torch.Generator().manual_seed(1)
    first = torch.nn.functional.normalize(torch.randn(40, 5, generator=generator), dim=-1)
    second = torch.nn.functional.normalize(first + 0.6 * torch.randn(40, 5, generator=generator), dim=-1)
    recall = RetrievalRecall(top=(1, 5))
    recall.update(first[:15], second[:15])
    recall.update(first[15:], second[15:])
    scores = first @ second.T
    for top, (there, back) in recall.result().items():
        for table, found in ((scores, there), (scores.T, back)):
            assert found == sum(row in table[row].topk(top).indices.tolist() for row in range(40)) / 40
    same = RetrievalRecall(top=(1,))
    same.update(torch.ones(4, 2), torch.ones(4, 2))
    assert same.result() == {1: (0.0, 0.0)}


def test_detections_batch_by_batch_are_those_of_one_call() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    wanted = [Objects(boxes, torch.tensor([0, 1])), Objects(boxes[:1], torch.tensor([1]))]
    found = [
        Detections(boxes + 1, torch.tensor([0.9, 0.3]), torch.tensor([0, 1])),
        Detections(boxes, torch.tensor([0.5, 0.8]), torch.tensor([1, 1])),
    ]
    precision = AveragePrecision()
    for one, other in zip(found, wanted, strict=True):
        precision.update([one], [other])
    assert precision.result().report() == score_detections(found, wanted, 2).report()
    with pytest.raises(DataError, match="unknown class"):
        precision.update(found[:1], [Objects(boxes[:1], torch.tensor([-1]))])


def test_edits_of_pairs_add_up() -> None:
    texts = [("the cat sat", "the cat sit"), ("hello", "hello now"), ("a b", "a b")]
    count = ErrorCount()
    for reference, hypothesis in texts:
        count.update(reference.split(), hypothesis.split())
    assert count.result() == word_error_rate([one for one, _ in texts], [other for _, other in texts])
    assert (count.wrong, count.texts) == (2, 3)


@pytest.mark.parametrize(
    "empty",
    [
        Accuracy(),
        CalibrationError(),
        RegressionErrors(),
        RetrievalRecall(),
        ConfusionMatrix(2),
        AveragePrecision(),
        ErrorCount(),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_nothing_is_no_score(empty: Accuracy) -> None:
    with pytest.raises(DataError):
        empty.result()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError):
        RegressionErrors().update(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(DataError):
        RetrievalRecall().update(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(DataError):
        RocAuc().update(torch.zeros(2), torch.zeros(3))
    with pytest.raises(DataError, match="unknown class"):
        ConfusionMatrix(2).update(torch.tensor([0, 2]), torch.tensor([0, 1]))
