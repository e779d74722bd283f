"""The bundle: a model as a folder that says all about itself, and the only thing stages hand each other on disk.

`config.yaml` (format version, model, task, quantization), `model.safetensors`, `tokenizer.json`, `golden.json` (samples
any copy must answer alike), `profile.json` (what the training data looked like), `report.json`, `exports/`.
Written whole or not at all; nothing in it is ever unpickled.
A path that ends in `.pt` is one file instead (without profile and report), read with torch's `weights_only` loader.
Not here: checkpoints (what a run needs to go on).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.data import Pipeline, Tokenizer
from deepseek.errors import BundleError, ConfigError, ModelError, TokenizerError, did_you_mean
from deepseek.files import atomic_folder, atomic_path
from deepseek.golden import Golden, check_golden, make_golden
from deepseek.hardware import resolve_device
from deepseek.models.factory import model_config, template_of
from deepseek.models.pretrained.fill import build_empty
from deepseek.nn.int8_swap import int8_specs, swap_linears
from deepseek.nn.structure import apply_structure, describe_structure
from deepseek.registry import MODELS, TASKS, resolve
from deepseek.yaml_source import YamlSource, parse_yaml, read_yaml

FORMAT_VERSION = 1
_TOKENIZER = "tokenizer.json"


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


class Bundle:
    """A loaded bundle: `model` (in eval mode), `tokenizer` (or None), `config`, `golden`, `path`."""

    def __init__(
        self, path: Path, config: BundleConfig, model: nn.Module, tokenizer: Tokenizer | None, golden: Golden | None
    ) -> None:
        self.path = path
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.golden = golden

    @property
    def num_parameters(self) -> int:
        """The number of weights, int8 ones included, tied ones once."""
        tensors = {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}
        return sum(tensor.numel() for tensor in tensors.values())

    @property
    def files(self) -> dict[str, int]:
        """The bundle's files and their sizes in bytes, by relative path."""
        if self.path.is_file():
            return {self.path.name: self.path.stat().st_size}
        found = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in found}

    @property
    def pipeline_stages(self) -> list[dict[str, Any]]:
        """The stages of `config.pipeline`, with the place where the bundle's tokenizer lies."""
        place = str(self.path / _TOKENIZER)
        return [
            {**one, "tokenizer": place} if one.get("tokenizer") == _TOKENIZER else one for one in self.config.pipeline
        ]

    def pipeline(self) -> Pipeline | None:
        """Return what makes batches of samples for the model; None where the bundle has no stages.

        Raises BundleError for a `.pt` file whose stages need its tokenizer as a file, ConfigError for wrong stages.
        """
        if not self.config.pipeline:
            return None
        if self.path.is_file() and self.pipeline_stages != self.config.pipeline:
            raise BundleError(
                f"{self.path} is one file, and its pipeline needs tokenizer.json", fix="save the model as a folder"
            )
        return Pipeline.from_config(self.pipeline_stages)

    @property
    def profile(self) -> dict[str, Any] | None:
        """What the training data looked like (`profile.json`); None where it was not written. Raises BundleError."""
        path = self.path / "profile.json"
        try:
            found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise BundleError(f"{path} is damaged", found=_first_line(error)) from error
        return found

    def verify(self) -> None:
        """Answer the golden samples. Raises BundleError when the model answers differently than when it was saved."""
        if self.golden is not None:
            check_golden(self.model, self.golden, str(self.path))

    def generate(self, prompt: str, **settings: Any) -> str:
        """Return the text that follows `prompt`; `settings` as for `model.generate`.

        Raises BundleError for a bundle without a tokenizer.
        """
        if self.tokenizer is None:
            raise BundleError(f"{self.path} has no tokenizer", fix="use bundle.model.generate with token ids")
        ids = self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]
        device = next(iter(self.model.state_dict().values())).device
        generate: Any = self.model.generate
        output = generate(torch.tensor([ids], device=device), **{"eos_id": self.tokenizer.eos_id, **settings})
        return self.tokenizer.decode(output[0, len(ids) :].tolist())


def save(
    model: nn.Module,
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    task: str = "language_modeling",
    task_settings: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    pipeline: Sequence[Mapping[str, Any]] = (),
    report: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` as a bundle folder, or as one file if `path` ends in `.pt`; replaces a bundle that is there.

    `model` is one of our templates, quantized or not. `labels` names its classes, `pipeline` is how a sample becomes
    its input (`Pipeline.to_config()`): where `tokenizer` is given, its stages use that one from then on.
    `report` goes to `report.json` (folders only). Golden samples are answered and stored.

    Raises BundleError for a model that is none of ours or a path that holds something else, StorageError when the disk
    refuses; what was there before then stays.
    """
    path = Path(path)
    if task not in TASKS:
        raise BundleError("unknown task", found=repr(task), fix=did_you_mean(task, TASKS))
    state, tied = _stored_state(model)
    config = BundleConfig(
        format_version=FORMAT_VERSION,
        task=task,
        task_settings=dict(task_settings or {}),
        labels=list(labels),
        pipeline=[_own_tokenizer(stage, tokenizer) for stage in pipeline],
        model=_described(model),
        tied=tied,
        structure=describe_structure(model),
        quantization={name: dict(spec) for name, spec in int8_specs(model).items()},
    )
    golden = make_golden(model)
    if path.suffix == ".pt":
        _save_file(path, config, state, tokenizer, golden)
        return path
    if path.exists() and not _holds_bundle(path) and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path} exists and is not a bundle", fix="choose another path or remove it first")
    with atomic_folder(path, replace=True) as folder:
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(folder / "config.yaml", folder / "model.safetensors")  # safetensors lets only its owner read
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")
        if golden is not None:
            (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
        if profile is not None:
            (folder / "profile.json").write_text(json.dumps(dict(profile)), encoding="utf-8")
        if report is not None:
            text = json.dumps(dict(report), indent=2, ensure_ascii=False)
            (folder / "report.json").write_text(text, encoding="utf-8")
    return path


def load(path: str | Path, device: str = "auto") -> Bundle:
    """Read a bundle folder or `.pt` file; the model comes in eval mode on `device`.

    Weights are placed once: the model is built without memory and takes the tensors as they are read.
    Raises BundleError for a missing, damaged, unsafe or foreign file, before anything is changed.
    """
    path, target = Path(path), resolve_device(device)
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BundleError(f"{path} does not exist", fix=did_you_mean(path.name, siblings) if siblings else None)
    try:
        config, state, tokenizer, golden = _read_file(path) if path.is_file() else _read_folder(path)
        model = _assemble(path, config, state)
    except (ConfigError, ModelError, TokenizerError) as error:
        raise BundleError(
            f"{path} can't be loaded: {error.problem}", found=error.found, wanted=error.wanted, fix=error.fix
        ) from error
    return Bundle(path, config, model.to(target).eval(), tokenizer, golden)


def _own_tokenizer(stage: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the stage's settings in YAML's terms; stages use the bundle's own tokenizer."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(stage)))
    return {**plain, "tokenizer": _TOKENIZER} if tokenizer is not None and "tokenizer" in plain else plain


def _holds_bundle(path: Path) -> bool:
    """Return whether a folder is a bundle of any version: not just any folder with a config.yaml may be replaced."""
    try:
        config = read_yaml(path / "config.yaml").value
    except ConfigError:
        return False
    return isinstance(config, dict) and "format_version" in config


def _described(model: nn.Module) -> dict[str, Any]:
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


def _stored_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def _save_file(
    path: Path, config: BundleConfig, state: dict[str, Tensor], tokenizer: Tokenizer | None, golden: Golden | None
) -> None:
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


_Parts = tuple[BundleConfig, dict[str, Tensor], Tokenizer | None, Golden | None]


def _read_file(path: Path) -> _Parts:
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
            found=_first_line(error),
            wanted="a file written by ds.save(model, 'NAME.pt')",
            fix="files that hold pickled code are never opened; save the model again with ds.save",
        ) from error
    return _checked_config(source, path), state, Tokenizer(text) if text else None, golden


def _read_folder(path: Path) -> _Parts:
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
            found=_first_line(error),
            fix="copy the bundle again, or train again",
        ) from error
    tokenizer = Tokenizer.load(path / "tokenizer.json") if (path / "tokenizer.json").is_file() else None
    try:
        stored = path / "golden.json"
        golden = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else None
    except ValueError as error:
        raise BundleError(f"{path / 'golden.json'} is damaged", found=_first_line(error)) from error
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


def _assemble(path: Path, config: BundleConfig, state: dict[str, Tensor]) -> nn.Module:
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
        raise BundleError(f"{path}: the weights do not fit the config", found=_first_line(error)) from error
    for name, owner in config.tied.items():
        parent, _, leaf = name.rpartition(".")
        owner_parent, _, owner_leaf = owner.rpartition(".")
        setattr(model.get_submodule(parent), leaf, getattr(model.get_submodule(owner_parent), owner_leaf))
    return model


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
