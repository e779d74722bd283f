"""Recipes of all tasks: what is wrong in their task and data sections is told with file, line and nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepseek.config import parse_yaml
from deepseek.errors import ConfigError
from deepseek.road.explain import explain_name
from deepseek.road.new import NEW, new_recipe
from deepseek.road.recipe import checked_recipe, read_recipe

IMAGES = """\
data:
  train: folder
  reader: {kind: image_folder}
  pipeline:
    - {name: Resize, size: 32}
    - {name: Normalize}
task: {name: image_classification}
model: {name: ResNet}
"""

WRONG = {
    "unknown task": (IMAGES.replace("image_classification", "image_clasification"), [":7", "image_classification"]),
    "unknown setting of the task": (
        IMAGES.replace("task: {", "task:\n  {label_smothing: 0.1, "),
        [":8", "label_smothing", "label_smoothing"],
    ),
    "wrong value of the task": (
        IMAGES.replace("task: {", "task:\n  {label_smoothing: lots, "),
        [":8", "label_smoothing", "'lots'"],
    ),
    "unknown reader": (IMAGES.replace("image_folder", "image_foldr"), [":3", "image_foldr", "image_folder"]),
    "unknown option of the reader": (
        IMAGES.replace("image_folder}", "image_folder,\n    chanels: 1}"),
        [":4", "chanels", "channels"],
    ),
    "unknown stage": (IMAGES.replace("Resize", "Rezise"), [":5", "Rezise", "Resize"]),
    "unknown setting of a stage": (IMAGES.replace("size: 32", "sise: 32"), [":5", "sise", "size"]),
    "wrong value of a stage": (IMAGES.replace("size: 32", "size: -3"), [":5", "size", "-3"]),
    "a stage that can't be reached": (
        IMAGES.replace(
            "    - {name: Normalize}",
            "    - {name: SpecAugment}\n    - {name: Cepstra}\n    - {name: LogMel}\n    - {name: LogMel}",
        ),
        [":4", "two stages"],
    ),
    "a stage without its settings": (IMAGES.replace("{name: Normalize}", "{name: RandomPatch}"), [":6", "RandomPatch"]),
    "text settings without text": (
        IMAGES.replace("  pipeline:", "  vocab_size: 300\n  pipeline:"),
        ["vocab_size", "Tokenize"],
    ),
    "samples' settings for a language model": (
        "data:\n  train: x\n  pipeline: [{name: Normalize}]\nmodel: {name: GPT}",
        [":3", "data.pipeline", "language_modeling"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_file_and_line(case: str, tmp_path: Path) -> None:
    text, told = WRONG[case]
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_recipe(tmp_path / "recipe.yaml")
    for part in ["recipe.yaml", *told]:
        assert part in str(error.value), str(error.value)


def test_a_recipe_of_another_task_reads_back_as_it_was_written(tmp_path: Path) -> None:
    recipe = checked_recipe(parse_yaml(IMAGES))
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml").to_dict() == recipe.to_dict()
    assert recipe.task_name == "image_classification"


def test_what_the_command_line_says_takes_the_recipes_place() -> None:
    recipe = checked_recipe(parse_yaml(IMAGES))
    changed = recipe.changed(name="b", output_dir="c", data="d", max_steps=3)
    assert (changed.folder, changed.data.train, changed.train.max_steps) == (Path("c/b"), "d", 3)
    assert changed.data.reader == recipe.data.reader
    assert recipe.changed() is recipe


@pytest.mark.parametrize("task", NEW)
def test_every_task_of_new_has_a_recipe_that_reads(task: str) -> None:
    recipe = checked_recipe(parse_yaml(new_recipe(task, "mine", "some/where"), "mine.yaml"))
    assert (recipe.task_name, recipe.name, recipe.data.train) == (task, "mine", "some/where")


def test_new_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="segmentation"):
        new_recipe("segmentatio", "x", "y")
    with pytest.raises(ConfigError, match="--data"):
        new_recipe("detection", "x", "python-docs")


def test_tasks_readers_and_stages_are_explained_by_their_names() -> None:
    for key, told in {
        "task": "detection: ",
        "task.detection": "min_score",
        "task.segmentation.gamma": "Dice",
        "data.reader": "voc: ",
        "data.reader.csv": "delimiter",
        "data.pipeline": "Letterbox: ",
        "data.pipeline.Letterbox": "size",
    }.items():
        assert told in (explain_name(key) or ""), key
    assert explain_name("train.learning_rate") is None and explain_name("data") is None
    for key in ("task.detecton", "data.reader.cvs", "data.pipeline.Letterboxx", "task.detection.min_scor"):
        with pytest.raises(ConfigError, match="detection|csv|Letterbox|min_score"):
            explain_name(key)
