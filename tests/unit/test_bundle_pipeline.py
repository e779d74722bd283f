"""Bundles of every task: the names of the classes, the task's settings, and what makes batches of raw samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deepseek as ds
from deepseek.data import Normalize, Pipeline, Resize, Tokenize, Tokenizer
from deepseek.errors import BundleError
from deepseek.models.factory import build


def test_labels_settings_and_pipeline_come_back(tmp_path: Path) -> None:
    model = build({"name": "MLP", "input_shape": [3, 4, 4], "hidden_sizes": [4], "num_labels": 2}).eval()
    pipeline = Pipeline([Resize(size=(4, 4)), Normalize()])
    path = ds.save(
        model,
        tmp_path / "bundle",
        task="detection",
        task_settings={"min_score": 0.3},
        labels=("cat", "dog"),
        pipeline=pipeline.to_config(),
    )
    bundle = ds.load(path, device="cpu")
    assert bundle.config.labels == ["cat", "dog"] and bundle.config.task_settings == {"min_score": 0.3}
    image = torch.randint(256, (3, 9, 7), dtype=torch.uint8)
    again = bundle.pipeline()
    assert again is not None
    torch.testing.assert_close(again([{"image": image}])["pixel_values"], pipeline([{"image": image}])["pixel_values"])


def test_a_bundle_without_stages_has_no_pipeline(tmp_path: Path) -> None:
    model = build({"name": "MLP", "input_shape": [4], "hidden_sizes": [4]})
    bundle = ds.load(ds.save(model, tmp_path / "bundle"), device="cpu")
    assert bundle.pipeline() is None and bundle.config.labels == []


def test_the_tokenizer_of_the_stages_is_the_bundles_wherever_it_lies(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c d e f g"] * 20, 270, allow_smaller=True)
    tokenizer.save(tmp_path / "elsewhere.json")
    model = build({"name": "MLP", "input_shape": [4], "hidden_sizes": [4]})
    stages = Pipeline([Tokenize(str(tmp_path / "elsewhere.json"), max_length=3)]).to_config()
    ds.save(model, tmp_path / "bundle", tokenizer=tokenizer, pipeline=stages)
    ds.save(model, tmp_path / "bundle.pt", tokenizer=tokenizer, pipeline=stages)
    (tmp_path / "elsewhere.json").unlink()
    (tmp_path / "bundle").rename(tmp_path / "moved")
    pipeline = ds.load(tmp_path / "moved", device="cpu").pipeline()
    assert pipeline is not None
    assert pipeline([{"text": "c d e f"}])["input_ids"][0].tolist() == tokenizer.encode("c d e f")[:3]
    with pytest.raises(BundleError, match="one file"):
        ds.load(tmp_path / "bundle.pt", device="cpu").pipeline()
