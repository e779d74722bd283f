"""The recipe: one YAML file with a section for each stage of the road."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from deepseek.compress.config import CompressConfig
from deepseek.config import Config
from deepseek.errors import ConfigError
from deepseek.export.onnx_export import OnnxConfig
from deepseek.models.factory import model_config
from deepseek.models.generation import SamplingConfig
from deepseek.road.check import check_data_section, check_task
from deepseek.road.data_config import DataConfig as DataConfig
from deepseek.train.config import TrainConfig
from deepseek.yaml_source import YamlSource, read_yaml

PYTHON_DOCS = "python-docs"
"""In place of a path: the English text that comes with Python itself."""
LANGUAGE_MODELING = "language_modeling"
"""The task of a recipe that names none."""


class EvaluateConfig(Config):
    """What is measured after training. `prompts` and `sampling` are for language models, the others for other tasks."""

    prompts: list[str] | None = Field(default=None, max_length=64)
    """Beginnings of texts that the model continues for the report; null takes them from the validation text."""
    sampling: SamplingConfig = SamplingConfig(
        max_new_tokens=80, temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=0
    )
    """How the samples are drawn."""
    examples: int = Field(default=12, ge=0, le=256)
    """Validation samples that the report shows with the model's answers."""
    max_batches: int | None = Field(default=None, ge=1)
    """Most validation batches to measure on; null is all."""


class ServeConfig(Config):
    """Where `deepseek serve` answers when it serves a bundle of this run."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port; 0 takes a free one."""


class Recipe(Config):
    """A run from data to a served model. Every section but data and model may be left out."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run and of its folder."""
    output_dir: str = "runs"
    """Folder that run folders are made in."""
    data: DataConfig
    """What the model learns from."""
    model: dict[str, Any]
    """The template's name (or a size of the zoo) and its settings: `name: GPT`, `num_layers: 6`, ..."""
    task: dict[str, Any] = Field(default_factory=lambda: {"name": LANGUAGE_MODELING})
    """What the model is for: the task's name and its settings, `name: detection`, `min_score: 0.3`, ...; see
    `deepseek explain task`."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    evaluate: EvaluateConfig | None = None
    """What is measured after training."""
    compress: CompressConfig | None = None
    """How it is made smaller and faster."""
    export: OnnxConfig | None = None
    """The form that other runtimes read."""
    serve: ServeConfig | None = None
    """How it is served."""

    @property
    def task_name(self) -> str:
        """The task's name."""
        return str(self.task["name"])

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.name

    def changed(
        self,
        *,
        name: str | None = None,
        output_dir: str | None = None,
        data: str | None = None,
        max_steps: int | None = None,
    ) -> Recipe:
        """Return the recipe with what the command line says in place of its own values."""
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = name
        if output_dir is not None:
            changes["output_dir"] = output_dir
        if data is not None:
            changes["data"] = self.data.replace(train=data)
        if max_steps is not None:
            changes["train"] = self.train.replace(max_steps=max_steps)
        return self.replace(**changes) if changes else self

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a stage that is not wanted is left out, since an empty section asks for its defaults."""
        return {name: value for name, value in super().to_dict().items() if value is not None}


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe, its model section too. Raises ConfigError with `file:line`."""
    return checked_recipe(read_yaml(path))


def checked_recipe(source: YamlSource) -> Recipe:
    """Check a parsed recipe; a section written empty (`compress:`) has its defaults. Raises ConfigError."""
    if isinstance(source.value, dict):
        value = {
            name: {} if section is None and name in _MAY_BE_EMPTY else section for name, section in source.value.items()
        }
        source = YamlSource(source.name, value, source.lines)
    recipe = Recipe.from_source(source)
    if "name" not in recipe.task:
        recipe = recipe.replace(task={"name": LANGUAGE_MODELING, **recipe.task})
    _check_model(recipe, source)
    check_task(recipe.task, source)
    check_data_section(recipe.data, recipe.task_name == LANGUAGE_MODELING, source)
    return recipe


_MAY_BE_EMPTY = frozenset({"task", "train", "evaluate", "compress", "export", "serve"})


def _check_model(recipe: Recipe, source: YamlSource) -> None:
    lines = {key[1:]: line for key, line in source.lines.items() if key[:1] == ("model",)}
    inner = YamlSource(source.name, dict(recipe.model), lines)
    try:
        model_config(inner)
    except ConfigError as error:
        problem = error.problem.removeprefix(f"{source.name}:").lstrip()
        if problem[0].isdigit():
            raise
        where = inner.where(("name",))
        raise ConfigError(f"{where}: {problem}", found=error.found, wanted=error.wanted, fix=error.fix) from None
    known, wanted = recipe.model.get("vocab_size"), recipe.data.vocab_size
    if known is not None and wanted is not None and wanted > known:
        raise ConfigError(
            f"{source.where(('data', 'vocab_size'))}: the tokenizer would have more tokens than the model",
            found=f"data.vocab_size {wanted}, model.vocab_size {known}",
            fix="leave model.vocab_size out; the tokenizer's is taken then",
        )
