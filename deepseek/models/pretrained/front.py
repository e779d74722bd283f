"""Models from checkpoints of the Hugging Face layout, and back: `from_pretrained` and `save_pretrained`.

The family is chosen by `model_type` in config.json (`registry.PRETRAINED`). No code of a checkpoint is ever run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.config import Config
from deepseek.errors import ConfigError, ModelError, did_you_mean
from deepseek.hardware import resolve_device
from deepseek.models.factory import template_of
from deepseek.models.pretrained.fill import build_empty, fill, stored_weights
from deepseek.models.pretrained.hub import local_folder
from deepseek.models.pretrained.rules import Family
from deepseek.models.pretrained.store import Checkpoint, Stored, write_folder
from deepseek.models.pretrained.translate import Source, part_shape, source_of, to_theirs
from deepseek.registry import MODEL_CONFIGS, MODELS, PRETRAINED, resolve


def from_pretrained(
    source: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **changes: Any,
) -> nn.Module:
    """Return the model in `source`, a folder with config.json and safetensors or a name on the hub, in eval mode.

    `dtype` ("bfloat16", torch.float32) is what floating weights become; None keeps what most are stored in. `device`
    is where they go, None is the CPU. `changes` are values of the template's config
    (`gradient_checkpointing=True`, `num_labels=3`); a head of another size is started anew, with a warning.
    Raises ModelError for a checkpoint that is missing, damaged, unsafe or not of a known family, ConfigError for
    `changes` that the template does not know.
    """
    return load_pretrained(source, None, dtype, device, changes)


def load_pretrained(
    source: str | Path,
    template: type | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    changes: Mapping[str, Any],
) -> nn.Module:
    """Do what `from_pretrained` says, for a checkpoint of `template` (or of the template it derives from) alone."""
    target, wanted_dtype = resolve_device(device or "cpu"), _checked_dtype(dtype)
    checkpoint = Checkpoint(local_folder(source))
    family = _family_of(checkpoint)
    model_class: Any = resolve(MODELS, family.template, "model")
    if template is not None and not issubclass(template, model_class):
        raise ModelError(
            f"{checkpoint.folder} holds no {template.__name__}",
            found=f"a {family.template} (model_type {checkpoint.config['model_type']})",
            fix=f"{family.template}.from_pretrained, or deepseek.models.pretrained.from_pretrained for any",
        )
    config = _template_config(family, checkpoint, changes)
    model = build_empty(template or model_class, config)
    fill(model, family, family.rules(model.config), checkpoint, wanted_dtype, target)
    return model.eval()


def save_pretrained(model: nn.Module, folder: str | Path, *, max_shard_size: int | str = "5GB") -> Path:
    """Write a model of ours as config.json and safetensors; shards with an index above `max_shard_size` bytes.

    A checkpoint in `folder` is replaced as a whole; its other files (a tokenizer) stay. Raises ModelError for a model
    without a public counterpart or a folder that holds something else, StorageError when the disk refuses.
    """
    family, described = _described(model)
    rules = family.rules(model.config)
    tensors = []
    for names, tensor in stored_weights(model):
        source = next((found for name in names if (found := source_of(name, tensor.shape, rules))), None)
        if source is not None:
            tensors += _stored(source, tensor)
        elif isinstance(tensor, nn.Parameter):
            raise ModelError(f"'{names[0]}' has no name in the layout of {described['model_type']}")
    described = {**described, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    write_folder(Path(folder), described, tensors, _bytes(max_shard_size))
    return Path(folder)


def public_config(model: nn.Module) -> dict[str, Any]:
    """Return the content of the config.json that `save_pretrained` would write, but for the number format.

    Raises ModelError for a model without a public counterpart, as `save_pretrained` does.
    """
    return _described(model)[1]


def _described(model: nn.Module) -> tuple[Family, dict[str, Any]]:
    """Return the family of a model of ours, and the content of its config.json. Raises ModelError without one."""
    config = getattr(model, "config", None)
    if not isinstance(config, Config):
        raise ModelError("only models of our templates can be saved this way", found=type(model).__name__)
    family, described = _family_for(config)
    _check_unchanged(model, config)
    return family, described


def _check_unchanged(model: nn.Module, config: Config) -> None:
    """Check that the model has the weights its config describes: not quantized, no layer added or replaced."""
    wanted = _described_weights(build_empty(type(model), config))
    found = _described_weights(model)
    changed = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if changed:
        raise ModelError(
            "the model's weights are not those its config describes",
            found=f"{changed[0]}: {found.get(changed[0], 'missing')}" + (", and more" if changed[1:] else ""),
            wanted=wanted.get(changed[0], "no such weight"),
            fix="save the model before it is quantized or its layers are replaced; ds.save writes any as a bundle",
        )


def _described_weights(model: nn.Module) -> dict[str, str]:
    return {
        name: f"{tuple(tensor.shape)} of {'floats' if tensor.is_floating_point() else tensor.dtype}"
        for name, tensor in model.state_dict().items()
    }


def _stored(source: Source, tensor: Tensor) -> list[Stored]:
    """Return what to write for one weight of ours; each tensor is copied when its file is written, not before."""
    part = torch.Size(part_shape(source, tensor.shape)).numel() * tensor.itemsize

    def copied(index: int) -> Tensor:
        return to_theirs(source, tensor.detach())[index][1].cpu().contiguous()

    return [Stored(name, part, functools.partial(copied, index)) for index, name in enumerate(source.names)]


def _family_of(checkpoint: Checkpoint) -> Family:
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in PRETRAINED:
        known = did_you_mean(str(model_type), PRETRAINED)
        raise ModelError(
            f"{checkpoint.folder}/config.json is of an unknown family", found=f"model_type {model_type!r}", fix=known
        )
    if checkpoint.config.get("quantization_config"):
        raise ModelError(
            f"{checkpoint.folder} holds quantized weights, which can't be read",
            found="quantization_config in config.json",
            fix="take the checkpoint of plain weights (bfloat16 or float32)",
        )
    family = resolve(PRETRAINED, model_type, "family")
    if not isinstance(family, Family):
        raise TypeError(f"{PRETRAINED[model_type]} is not a Family")
    return family


def _template_config(family: Family, checkpoint: Checkpoint, changes: Mapping[str, Any]) -> Any:
    """Return the template's config for config.json, changed as the user wants."""
    config_class: Any = resolve(MODEL_CONFIGS, family.template, "model")
    unknown = [name for name in changes if name not in config_class.model_fields]
    if unknown:
        raise ConfigError(
            f"{family.template} has no setting '{unknown[0]}'", fix=did_you_mean(unknown[0], config_class.model_fields)
        )
    try:
        values = family.config_from(checkpoint.config)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{checkpoint.folder}/config.json lacks a setting or has it in another form", found=repr(error)
        ) from error
    return config_class(**{**values, **changes})


def _family_for(config: Config) -> tuple[Family, dict[str, Any]]:
    """Return the first family of the config's template that can hold it, and the content of its config.json."""
    template = template_of(config)
    refusal: ModelError | None = None
    for model_type in PRETRAINED:
        family: Any = resolve(PRETRAINED, model_type, "family")
        if family.template != template:
            continue
        try:
            return family, dict(family.config_to(config))
        except ModelError as error:
            refusal = refusal or error
    raise refusal or ModelError(
        f"{template} has no public counterpart to be saved as", fix="ds.save(model, path) writes a bundle"
    )


def _checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1):
        raise ModelError("not a number format for weights", found=repr(dtype), wanted="float32, bfloat16 or float16")
    return found


def _bytes(size: int | str) -> int:
    """Return the number of bytes meant by "5GB", "200MB", "64KB" (powers of 1000) or a number."""
    match = re.fullmatch(r"([0-9]{1,18})\s*(KB|MB|GB|TB|B)?", str(size).strip().upper())
    if match is None or int(match[1]) == 0:
        raise ModelError("not a size for shards", found=repr(size), wanted='bytes, or text like "5GB" or "200MB"')
    return int(match[1]) * {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[match[2] or "B"]
