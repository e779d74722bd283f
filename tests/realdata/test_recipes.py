"""Every shipped recipe on the data it is for: a few steps, a few batches to measure on, and a report.

What whole runs reach stands in the manual (docs/en/recipe.md).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek.bundle import load
from deepseek.road.recipe import EvaluateConfig, read_recipe
from deepseek.road.walk import walk

pytestmark = pytest.mark.realdata

RECIPES = {
    path.stem: path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    if "DEEPSEEK_TEST_DATA" in path.read_text(encoding="utf-8")
}
MEASURED = {
    "blood_cells": "map50",
    "digits": "accuracy",
    "generated_digits": "loss",
    "hidden_words": "accuracy",
    "hotel_reviews": "accuracy",
    "membrane": "dice",
    "network_attacks": "roc_auc",
    "spoken_digits": "cer",
}


def test_every_recipe_has_its_figure() -> None:
    assert set(RECIPES) == set(MEASURED)


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_a_shipped_recipe_walks_the_road(name: str, real_data: Path, tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES[name])
    few = {"epochs": None, "max_steps": 2, "batch_size": min(8, recipe.train.batch_size), "max_val_batches": 1}
    data = recipe.data if recipe.data.vocab_size is None else recipe.data.replace(vocab_size=400)
    fraction = 0.05 if recipe.data.split_by is None else recipe.train.val_fraction
    untrained = {"max_candidates": 100} if recipe.task_name == "detection" else {}  # it finds boxes everywhere
    recipe = recipe.replace(
        task={**recipe.task, **untrained},
        output_dir=str(tmp_path),
        data=data,
        train=recipe.train.replace(**few, val_fraction=fraction, compile=False, tensorboard=False),
        evaluate=EvaluateConfig(max_batches=2, examples=2),
    )
    said: list[str] = []
    walk(recipe, said.append)
    results = json.loads((recipe.folder / "results.json").read_text(encoding="utf-8"))
    assert results["train"]["steps"] == 2
    assert MEASURED[name] in results["evaluate"]["figures"]
    bundle = load(recipe.folder / "bundle", device="cpu")
    bundle.verify()
    assert bundle.pipeline() is not None
    assert (recipe.folder / "report.html").stat().st_size > 20_000
