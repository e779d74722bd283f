"""What a bundle is made of, on disk: its config, the tensors each stored once, and how they become a model again.

Everything is checked before a model is built, and nothing is unpickled. Not here: the bundle as users see it, and
writing its folder (see `bundle`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.data import Tokenizer
from deepseek.errors import BundleError, ConfigError, did_you_mean
from deepseek.files import atomic_path
from deepseek.golden import Golden
from deepseek.models.factory import model_config, template_of
from deepseek.models.pretrained.fill import build_empty
from deepseek.nn.int8_swap import swap_linears
from deepseek.nn.structure import apply_structure
from deepseek.registry import MODELS, TASKS, resolve
from deepseek.yaml_source import YamlSource, parse_yaml, read_yaml

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"


class BundleConfig(Config):
    """What `config.yaml` of a bundle holds."""

    format_version: int
    """Version of the bundle format; this release reads version 1."""
    task: str = "language_modeling"
    """What the model is for."""
    task_settings: dict[str, Any] = Field(default_factory=dict)
    """The task's settings, as `deepseek.tasks.build.build_task` takes them."""
    labels: list[str] = Field(default_factory=list)
    """Names of the classes, in the order of the model's outputs."""
    pipeline: list[dict[str, Any]] = Field(default_factory=list)
    """The stages that make of a sample what the model takes, as `deepseek.data.Pipeline.to_config` gives them. A
    stage whose tokenizer is `tokenizer.json` uses the bundle's."""
    model: dict[str, Any]
    """The template's name and its config."""
    tied: dict[str, str] = Field(default_factory=dict)
    """Weights stored once: name -> the name they are stored under."""
    structure: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What the model's config does not tell of its layers, as `deepseek.nn.structure` reads it."""
    quantization: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Int8 layers by module name, as `deepseek.nn.int8_swap` reads them."""


def described(model: nn.Module) -> dict[str, Any]:
    """Return a model's template and config. Raises BundleError for a model that is none of ours."""
    config = getattr(model, "config", None)
    try:
        if not isinstance(config, Config):
            raise ConfigError("no config")
        return {"name": template_of(config), **config.to_dict()}
    except ConfigError:
        raise BundleError(
            "only models of our templates can be saved as a bundle",
            found=type(model).__name__,
            wanted="a model from deepseek.models",
            fix="save other models with torch.save(model.state_dict(), path)",
        ) from None


def stored_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, each once, and for the others under which name they are stored."""
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        owner = owners.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if owner == name:
            state[name] = tensor.detach().contiguous().cpu()
        else:
            tied[name] = owner
    return state, tied


def write_file(
    path: Path, config: BundleConfig, state: dict[str, Tensor], tokenizer: Tokenizer | None, golden: Golden | None
) -> None:
    """Write all of it as one file. Raises StorageError."""
    content = {
        "format": "deepseek-bundle",
        "config": config.to_yaml(),
        "state_dict": state,
        "tokenizer": tokenizer.to_json() if tokenizer is not None else None,
        "golden": json.dumps(golden),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:  # torch's writer trips over what the disk said
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


Parts = tuple[BundleConfig, dict[str, Tensor], Tokenizer | None, Golden | None]


def read_file(path: Path) -> Parts:
    """Return what one file holds. Raises BundleError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != "deepseek-bundle":
            raise ValueError("not a deepseek file")
        source = parse_yaml(str(content["config"]), str(path))
        state, text = dict(content["state_dict"]), content["tokenizer"]
        golden = json.loads(content["golden"])
    except Exception as error:  # whatever a foreign file makes torch's safe loader say
        raise BundleError(
            f"{path} can't be read as a bundle",
            found=first_line(error),
            wanted="a file written by ds.save(model, 'NAME.pt')",
            fix="files that hold pickled code are never opened; save the model again with ds.save",
        ) from error
    return _checked_config(source, path), state, Tokenizer(text) if text else None, golden


def read_folder(path: Path) -> Parts:
    """Return what a folder holds. Raises BundleError."""
    if not (path / "config.yaml").is_file():
        raise BundleError(
            f"{path} is not a bundle",
            found="no config.yaml in it",
            wanted="a folder written by ds.save or `deepseek train`",
            fix="a run folder keeps its bundle in RUN/bundle" if (path / "bundle").is_dir() else None,
        )
    config = _checked_config(read_yaml(path / "config.yaml"), path)
    try:
        state = load_file(path / "model.safetensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(
            f"{path / 'model.safetensors'} can't be read: missing, cut short or not safetensors",
            found=first_line(error),
            fix="copy the bundle again, or train again",
        ) from error
    tokenizer = Tokenizer.load(path / "tokenizer.json") if (path / "tokenizer.json").is_file() else None
    try:
        stored = path / "golden.json"
        golden = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else None
    except ValueError as error:
        raise BundleError(f"{path / 'golden.json'} is damaged", found=first_line(error)) from error
    return config, state, tokenizer, golden


def _checked_config(source: YamlSource, path: Path) -> BundleConfig:
    """Return the config; the version comes first, since another one may have other keys."""
    version = source.value.get("format_version") if isinstance(source.value, dict) else FORMAT_VERSION
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} is of another bundle version",
            found=f"version {version}",
            wanted=f"version {FORMAT_VERSION}",
            fix="install the deepseek-framework release that wrote it, or save the model again",
        )
    config = BundleConfig.from_source(source)
    if config.task not in TASKS:
        raise BundleError(
            f"{path} is for an unknown task", found=repr(config.task), fix=did_you_mean(config.task, TASKS)
        )
    return config


def assemble(path: Path, config: BundleConfig, state: dict[str, Tensor]) -> nn.Module:
    """Return the model that takes these tensors as they are. Raises BundleError where they do not fit."""
    name, model_settings = model_config(config.model)
    model_class: Any = resolve(MODELS, name, "model")
    model = build_empty(model_class, model_settings)
    with torch.device("meta"):
        apply_structure(model, config.structure)
        swap_linears(model, config.quantization)
    for name, owner in config.tied.items():
        if owner not in state:
            raise BundleError(f"{path} is damaged", found=f"'{name}' shares the weight of '{owner}', which is missing")
        state[name] = state[owner]
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing, unexpected = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    shapes = [name for name in sorted(set(wanted) & set(state)) if wanted[name] != state[name].shape]
    if missing or unexpected or shapes:
        raise BundleError(
            f"{path}: the weights do not fit the config",
            found=f"missing {missing[:4]}, unexpected {unexpected[:4]}, other shapes {shapes[:4]}",
            fix="config.yaml and model.safetensors must come from the same save",
        )
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # whole numbers where floating-point ones belong
        raise BundleError(f"{path}: the weights do not fit the config", found=first_line(error)) from error
    for name, owner in config.tied.items():
        parent, _, leaf = name.rpartition(".")
        owner_parent, _, owner_leaf = owner.rpartition(".")
        setattr(model.get_submodule(parent), leaf, getattr(model.get_submodule(owner_parent), owner_leaf))
    return model


def first_line(error: BaseException) -> str:
    """Return what to tell of another library's error."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
