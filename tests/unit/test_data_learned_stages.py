"""Stages that learn from training samples: an alphabet, means and spreads of columns and features, categories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepseek.config import parse_yaml
from deepseek.data import GlobalMeanVarianceNorm, Pipeline
from deepseek.data.spell_text import SpellText
from deepseek.data.table_columns import TableColumns
from deepseek.errors import ConfigError, DataError
from deepseek.yaml_source import dump_yaml

ROWS = [
    {"row": {"age": 20, "income": 10.0, "city": "Bonn"}, "label": 0},
    {"row": {"age": 40, "income": float("nan"), "city": "Ulm"}, "label": 1},
    {"row": {"age": 60, "income": 30.0, "city": "Bonn"}, "label": 1},
]


def test_numbers_are_standardised_as_numpy_does_and_categories_counted_from_one():
    stage = TableColumns().learned(ROWS)
    batch = Pipeline([stage])(ROWS)
    ages = np.array([20, 40, 60])
    np.testing.assert_allclose(batch["numeric"][:, 0], (ages - ages.mean()) / ages.std(), rtol=1e-6)
    np.testing.assert_allclose(batch["numeric"][:, 1], [-1, 0, 1], rtol=1e-6)  # a missing number is the mean
    assert batch["categorical"].tolist() == [[1], [2], [1]]
    assert batch["labels"].tolist() == [0, 1, 1]
    assert stage.cardinalities == [3] and stage.width == 2


def test_what_training_did_not_have_is_category_zero():
    stage = TableColumns(min_count=2).learned(ROWS)
    unknown = {"row": {"age": 20, "income": 10.0, "city": "Köln"}, "label": 0}
    assert Pipeline([stage])([unknown, ROWS[1], ROWS[0]])["categorical"].tolist() == [[0], [0], [1]]


def test_one_hot_and_log():
    stage = TableColumns(one_hot=True, log=True, ignore=("income",)).learned(ROWS)
    features = Pipeline([stage])(ROWS)["features"]
    logs = np.log1p([20, 40, 60])
    np.testing.assert_allclose(features[:, 0], (logs - logs.mean()) / logs.std(), rtol=1e-5)
    assert features[:, 1:].tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert features.shape[1] == stage.width


def test_a_learned_pipeline_survives_yaml():
    made = Pipeline([TableColumns().learned(ROWS)])
    text = dump_yaml({"stages": made.to_config()})
    again = Pipeline.from_config(parse_yaml(text).value["stages"])
    for key, value in made(ROWS).items():
        torch.testing.assert_close(again(ROWS)[key], value)


@pytest.mark.parametrize(
    ("stage", "sample", "told"),
    [
        (TableColumns(), ROWS[0], "learned"),
        (TableColumns().learned(ROWS), {"row": {"age": 1}}, "lacks"),
        (TableColumns().learned(ROWS), {"row": {"age": "x", "income": 1, "city": "Bonn"}}, "lacks a number"),
        (SpellText(), {"text": "a"}, "no alphabet"),
        (SpellText(alphabet="ab"), {"text": "abc"}, "not in the alphabet"),
        (SpellText(alphabet="ab"), {"text": ""}, "empty"),
        (SpellText(alphabet="ab"), {"text": 3}, "no text"),
    ],
)
def test_what_can_not_be_is_told(stage, sample, told):
    with pytest.raises(DataError, match=told):
        Pipeline([stage])([sample])


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="twice"):
        TableColumns(numeric=("a",), ignore=("a",))
    with pytest.raises(DataError, match="no such column"):
        TableColumns(ignore=("agee",)).learned(ROWS)
    with pytest.raises(DataError, match="no column to learn"):
        TableColumns(ignore=("age", "income", "city")).learned(ROWS)
    with pytest.raises(ConfigError, match="twice"):
        SpellText(alphabet="aba")
    with pytest.raises(ConfigError, match="error"):
        SpellText(unknown="ignore")


def test_texts_are_spelled_and_read_back():
    samples = [{"text": "Zero"}, {"text": "one"}]
    stage = SpellText().learned(samples)
    batch = Pipeline([stage])(samples)
    assert stage.alphabet == "enorz" and stage.vocab_size == 7
    assert batch["labels"].tolist() == [[5, 1, 4, 3], [3, 2, 1, -100]]
    assert [stage.spelled(row) for row in batch["labels"].tolist()] == ["zero", "one"]
    dropping = SpellText(alphabet="ez", unknown="drop")
    assert Pipeline([dropping])([{"text": "zero"}])["labels"].tolist() == [[2, 1]]


def test_frames_are_scaled_by_the_statistics_of_all_training_frames():
    draw = torch.Generator().manual_seed(0)
    samples = [{"input_features": 3 + 5 * torch.randn(frames, 4, generator=draw)} for frames in (7, 1, 40)]
    for sample in samples:
        sample["input_features"][:, 3] = 1000.0  # does not vary
    stage = GlobalMeanVarianceNorm().learned(iter(samples))
    whole = torch.cat([sample["input_features"] for sample in samples]).double().numpy()
    np.testing.assert_allclose(stage.means, whole.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stage.stds, [*whole.std(axis=0)[:3], 1.0], rtol=1e-6)
    made = Pipeline([stage])
    scaled = torch.cat([made(sample)["input_features"] for sample in samples])
    np.testing.assert_allclose(scaled[:, :3], (whole[:, :3] - stage.means[:3]) / stage.stds[:3], atol=1e-5)
    again = Pipeline.from_config(parse_yaml(dump_yaml({"stages": made.to_config()})).value["stages"])
    assert torch.equal(again(samples[0])["input_features"], scaled[:7])
    with pytest.raises(DataError, match="number of features"):
        made({"input_features": torch.zeros(3, 5)})
    with pytest.raises(DataError, match="learned"):
        Pipeline([GlobalMeanVarianceNorm()])(samples[0])
    with pytest.raises(ConfigError, match="belong together"):
        GlobalMeanVarianceNorm(means=(1.0,))
