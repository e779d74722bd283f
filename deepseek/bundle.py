"""The bundle: a model as a folder that says all about itself, and the only thing stages hand each other on disk.

`config.yaml` (format version, model, task, quantization), `model.safetensors`, `tokenizer.json`, `golden.json` (samples
any copy must answer alike), `profile.json` (what the training data looked like), `report.json`, `exports/`.
Written whole or not at all; nothing in it is ever unpickled.
A path that ends in `.pt` is one file instead (without profile and report), read with torch's `weights_only` loader.
Not here: its parts on disk (see `bundle_parts`), checkpoints (what a run needs to go on).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from deepseek.bundle_parts import FORMAT_VERSION as FORMAT_VERSION
from deepseek.bundle_parts import (
    TOKENIZER,
    assemble,
    described,
    first_line,
    read_file,
    read_folder,
    stored_state,
    write_file,
)
from deepseek.bundle_parts import BundleConfig as BundleConfig
from deepseek.data import Pipeline, Tokenizer
from deepseek.errors import BundleError, ConfigError, ModelError, TokenizerError, did_you_mean
from deepseek.files import atomic_folder
from deepseek.golden import Golden, check_golden, make_golden
from deepseek.hardware import resolve_device
from deepseek.nn.int8_swap import int8_specs
from deepseek.nn.structure import describe_structure
from deepseek.registry import TASKS
from deepseek.yaml_source import read_yaml


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
        place = str(self.path / TOKENIZER)
        return [
            {**one, "tokenizer": place} if one.get("tokenizer") == TOKENIZER else one for one in self.config.pipeline
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
            raise BundleError(f"{path} is damaged", found=first_line(error)) from error
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
    state, tied = stored_state(model)
    config = BundleConfig(
        format_version=FORMAT_VERSION,
        task=task,
        task_settings=dict(task_settings or {}),
        labels=list(labels),
        pipeline=[_own_tokenizer(stage, tokenizer) for stage in pipeline],
        model=described(model),
        tied=tied,
        structure=describe_structure(model),
        quantization={name: dict(spec) for name, spec in int8_specs(model).items()},
    )
    golden = make_golden(model)
    if path.suffix == ".pt":
        write_file(path, config, state, tokenizer, golden)
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
        config, state, tokenizer, golden = read_file(path) if path.is_file() else read_folder(path)
        model = assemble(path, config, state)
    except (ConfigError, ModelError, TokenizerError) as error:
        raise BundleError(
            f"{path} can't be loaded: {error.problem}", found=error.found, wanted=error.wanted, fix=error.fix
        ) from error
    return Bundle(path, config, model.to(target).eval(), tokenizer, golden)


def _own_tokenizer(stage: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the stage's settings in YAML's terms; stages use the bundle's own tokenizer."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(stage)))
    return {**plain, "tokenizer": TOKENIZER} if tokenizer is not None and "tokenizer" in plain else plain


def _holds_bundle(path: Path) -> bool:
    """Return whether a folder is a bundle of any version: not just any folder with a config.yaml may be replaced."""
    try:
        config = read_yaml(path / "config.yaml").value
    except ConfigError:
        return False
    return isinstance(config, dict) and "format_version" in config
