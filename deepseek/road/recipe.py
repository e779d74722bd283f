"""The recipe: one YAML file with a section for each stage of the road."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from deepseek.compress.config import CompressConfig
from deepseek.config import Config
from deepseek.errors import ConfigError
from deepseek.export.onnx_export import OnnxConfig
from deepseek.models.factory import model_config
from deepseek.models.generation import SamplingConfig
from deepseek.train.config import TrainConfig
from deepseek.yaml_source import YamlSource, read_yaml

PYTHON_DOCS = "python-docs"
"""In place of a path: the English text that comes with Python itself."""


class DataConfig(Config):
    """What the model learns from."""

    train: str
    """A JSONL file ({"text"}, {"prompt", "response"} or {"messages"}), a text file, a folder of both; or `python-docs`,
    the English text that comes with Python."""
    val: str | None = None
    """Validation data; null holds back `train.val_fraction` of the documents."""
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one in the Hugging Face layout; null trains a tokenizer on the data."""
    vocab_size: int | None = Field(default=None, ge=261, le=1 << 20)
    """Tokens of the trained tokenizer; null is the model's vocab_size, or fewer where the data can't give so many.
    A number that the data can't give is an error."""
    allow_smaller_vocab: bool = False
    """Take the largest vocabulary the data gives where that is below vocab_size."""


class TaskConfig(Config):
    """What the model is for."""

    name: Literal["language_modeling"] = "language_modeling"
    """The task's name."""


class EvaluateConfig(Config):
    """What is measured after training."""

    prompts: list[str] | None = Field(default=None, max_length=64)
    """Beginnings of texts that the model continues for the report; null takes them from the validation text."""
    sampling: SamplingConfig = SamplingConfig(
        max_new_tokens=80, temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=0
    )
    """How the samples are drawn."""


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
    task: TaskConfig = TaskConfig()
    """What the model is for."""
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
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.name

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
    _check_model(recipe, source)
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
