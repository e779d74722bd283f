"""Which figure decides, and by how much one form is worse than another."""

from __future__ import annotations

import math

import pytest

from deepseek.compress.quality import Metric, drop, main_metric, passes
from deepseek.compress.units import Drop
from deepseek.errors import DataError


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [
        ({"loss": 1.0, "accuracy": 0.9, "macro_f1": 0.8}, ("accuracy", False)),
        ({"loss": 1.0, "perplexity": 2.7}, ("perplexity", True)),
        ({"loss": 1.0, "map50": 0.5, "map": 0.3}, ("map", False)),
        ({"loss": 1.0, "accuracy": 0.99, "dice": 0.8}, ("dice", False)),
        ({"loss": 1.0, "cer": 0.0, "wer": 0.1}, ("cer", True)),
        ({"loss": 1.0, "mae": 2.0, "r2": 0.5}, ("mae", True)),
        ({"loss": 1.0, "image_to_text_recall1": 0.4}, ("image_to_text_recall1", False)),
        ({"loss": 1.0, "map": 0.0}, ("loss", True)),  # a mAP of nothing can't get worse
        ({"loss": 1.0}, ("loss", True)),
    ],
)
def test_the_deciding_figure(figures: dict[str, float], wanted: tuple[str, bool]) -> None:
    assert main_metric(figures) == Metric(*wanted)


def test_a_task_that_measures_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="loss"):
        main_metric({})


def test_drops_are_positive_where_a_form_is_worse() -> None:
    accuracy, error = Metric("accuracy", False), Metric("cer", True)
    assert drop(accuracy, {"accuracy": 0.8}, {"accuracy": 0.6}, relative=True) == pytest.approx(0.25)
    assert drop(accuracy, {"accuracy": 0.8}, {"accuracy": 0.6}, relative=False) == pytest.approx(0.2)
    assert drop(error, {"cer": 0.2}, {"cer": 0.1}, relative=True) == pytest.approx(-0.5)
    assert drop(error, {"cer": 0.0}, {"cer": 0.1}, relative=True) == math.inf
    assert drop(error, {"cer": 0.0}, {"cer": 0.0}, relative=True) == 0
    assert drop(accuracy, {"accuracy": 0.8}, {"accuracy": math.nan}, relative=True) == math.inf
    assert drop(accuracy, {"accuracy": 0.8}, {}, relative=False) == math.inf


def test_a_perplexity_past_all_floats_still_compares() -> None:
    metric = Metric("perplexity", True)
    before, after = {"loss": 800.0, "perplexity": math.exp(700)}, {"loss": 800.1, "perplexity": math.exp(700)}
    assert drop(metric, before, after, relative=True) == pytest.approx(math.expm1(0.1))


def test_the_gate_takes_what_is_allowed_and_no_more() -> None:
    metric, before = Metric("accuracy", False), {"accuracy": 0.5}
    assert passes(metric, before, {"accuracy": 0.495}, Drop(0.01, True))
    assert not passes(metric, before, {"accuracy": 0.494}, Drop(0.01, True))
    assert passes(metric, before, {"accuracy": 0.49}, Drop(0.01, False))
    assert passes(metric, before, {"accuracy": 0.6}, Drop(0.0, True))
