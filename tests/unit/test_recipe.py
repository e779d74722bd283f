"""The recipe: what its errors say, what empty sections mean, and that everything shipped can be read and built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from deepseek import config
from deepseek.compress.config import CompressConfig
from deepseek.config import parse_yaml
from deepseek.errors import ConfigError
from deepseek.export.onnx_export import OnnxConfig
from deepseek.models.factory import build, model_config, zoo
from deepseek.models.gpt import GPTConfig
from deepseek.road.quickstart import quickstart_recipe, template
from deepseek.road.recipe import EvaluateConfig, Recipe, ServeConfig, read_recipe
from deepseek.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "deepseek").rglob("zoo/*.yaml")])

WRONG = {
    "unknown section": ("name: a\ndta: {train: x}\nmodel: {name: GPT}", ["recipe.yaml:2", "'dta'", "data"]),
    "unknown key": ("data: {train: x}\nmodel: {name: GPT}\ntrain:\n  learning_rat: 1e-3", [":4", "learning_rate"]),
    "wrong type": ("data: {train: x}\nmodel: {name: GPT}\ntrain:\n  batch_size: many", [":4", "'many'", "integer"]),
    "out of range": ("data: {train: x}\nmodel: {name: GPT}\ntrain:\n  batch_size: 0", [":4", "batch_size", "0"]),
    "no data": ("model: {name: GPT}", ["'data' is missing", "add 'data'"]),
    "empty data": ("data:\nmodel: {name: GPT}", [":1", "data"]),
    "empty file": ("", ["empty", "wanted", "model"]),
    "a list": ("- data\n- model", ["not a mapping"]),
    "python object": ("data: !!python/object/apply:os.system [ls]\nmodel: {name: GPT}", [":1", "not plain"]),
    "bad name": ("name: a/b\ndata: {train: x}\nmodel: {name: GPT}", [":1", "name"]),
    "unknown model": ("data: {train: x}\nmodel:\n  name: GTP", ["recipe.yaml:3", "'GTP'", "GPT"]),
    "model without a name": ("data: {train: x}\nmodel:\n  num_layers: 2", ["recipe.yaml:2", "needs a name", "GPT"]),
    "unknown key of the model": ("data: {train: x}\nmodel:\n  name: GPT\n  num_layer: 2", [":4", "num_layers"]),
    "wrong type in the model": ("data: {train: x}\nmodel:\n  name: GPT\n  d_model: wide", [":4", "'wide'"]),
    "heads that do not fit": ("data: {train: x}\nmodel:\n  name: GPT\n  num_heads: 5", [":", "768", "num_heads 4"]),
    "wrong size of the zoo": ("data: {train: x}\nmodel:\n  name: gpt-min", ["recipe.yaml:3", "gpt-mini"]),
    "vocabularies that disagree": (
        "data:\n  train: x\n  vocab_size: 900\nmodel: {name: GPT, vocab_size: 500}",
        ["recipe.yaml:3", "900", "500"],
    ),
    "compression that can not be": ("data: {train: x}\nmodel: {name: GPT}\ncompress:\n  method: int9", [":4", "int9"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_file_and_line_and_the_nearest_name(case, tmp_path):
    text, told = WRONG[case]
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_recipe(tmp_path / "recipe.yaml")
    assert "recipe.yaml" in str(error.value)
    for part in told:
        assert part in str(error.value)


def test_a_missing_recipe_is_told(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_recipe(tmp_path / "recipe.yaml")


def test_an_empty_section_has_its_defaults_and_an_absent_stage_is_not_wanted(tmp_path):
    text = "data: {train: x}\nmodel: {name: GPT}\n"
    (tmp_path / "bare.yaml").write_text(text)
    (tmp_path / "empty.yaml").write_text(text + "train:\ntask:\nevaluate:\ncompress:\nexport:\nserve:\n")
    bare, empty = read_recipe(tmp_path / "bare.yaml"), read_recipe(tmp_path / "empty.yaml")
    stages = (empty.train, empty.evaluate, empty.compress, empty.export, empty.serve)
    assert stages == (TrainConfig(), EvaluateConfig(), CompressConfig(), OnnxConfig(), ServeConfig())
    assert (bare.evaluate, bare.compress, bare.export, bare.serve) == (None, None, None, None)
    for recipe in (bare, empty):
        (tmp_path / "again.yaml").write_text(recipe.to_yaml())
        assert read_recipe(tmp_path / "again.yaml").to_dict() == recipe.to_dict()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_yaml_can_be_read_and_its_model_built(path):
    source = path if "zoo" in path.parts else read_recipe(path).model
    with torch.device("meta"):
        model = build(model_config(source)[1])
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000


def test_the_shipped_yaml_files_were_found():
    assert {path.stem for path in SHIPPED} == {*zoo(), *(path.stem for path in (ROOT / "recipes").glob("*.yaml"))}
    assert len(SHIPPED) > 5


def test_the_recipe_beside_the_package_is_the_one_inside():
    assert (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8") == template("quickstart")


def test_a_name_not_used_yet_is_found(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart-2").mkdir()
    assert quickstart_recipe(None, str(tmp_path)).folder == tmp_path / "quickstart-3"
    assert quickstart_recipe(None, str(tmp_path / "new"), minutes=2).train.time_budget == 120


def settings(section: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting below a section: its dotted path and what it means."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}", field.description or ""
        inner = config._section_of(field)
        if inner is not None:
            yield from settings(inner, f"{above}{name}.")


@pytest.mark.parametrize("root", [Recipe, GPTConfig])
def test_every_setting_is_explained(root):
    found = dict(settings(root))
    assert len(found) > 10
    for path, meaning in found.items():
        assert len(meaning) > 10, f"{path} has no docstring"
        assert config.explain(root, path).strip()
        if "." in path or config._section_of(root.model_fields[path]) is None:
            section, _, name = path.rpartition(".")
            assert " ".join(meaning.split()) in config.explain(root, section), path
            assert f"  {name}: " in config.explain(root, section)


def test_the_template_for_new_recipes_reads_with_a_name_and_data():
    text = template("new").replace("NAME", "x").replace("DATA", "python-docs")
    assert Recipe.from_source(parse_yaml(text)).model["name"] == "GPT"
