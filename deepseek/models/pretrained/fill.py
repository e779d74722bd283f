"""A model built without memory for its weights, then filled from a checkpoint one weight after the other.

Peak memory is about one copy: no weight is initialised first, and none is held twice but the one being read.
Buffers are computed for real as the model is built, so those that no file holds (tables of positions) are right.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule
from deepseek.models.pretrained.store import Checkpoint, listed
from deepseek.models.pretrained.translate import Source, part_shape, source_of, to_ours

logger = logging.getLogger("deepseek.models.pretrained")


def build_empty(template: type[nn.Module], config: Any) -> nn.Module:
    """Return `template(config)` with parameters on the meta device (no memory) and buffers on the CPU.

    Raises ModelError for sizes this machine can't even lay out.
    """
    builder = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != builder:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook: Any = to_meta  # torch's annotation lacks that what it returns takes the parameter's place
    handle = register_module_parameter_registration_hook(hook)
    try:
        with torch.device("cpu"):
            return template(config)
    except (RuntimeError, MemoryError) as error:
        raise ModelError("the model of config.json can't be built", found=str(error).splitlines()[0]) from error
    finally:
        handle.remove()


def fill(
    model: nn.Module,
    family: Family,
    rules: Sequence[Rule],
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Fill a model that `build_empty` made; floating weights become `dtype` (None: what most are stored in),
    on `device`.

    What the checkpoint has beyond that is named in a warning; so are weights of a head (`family.heads`) which it lacks
    or has in another size: these alone are started anew. Raises ModelError for other missing or misfit weights.
    """
    plan = _plan(model, family, rules, checkpoint)
    unexpected = sorted(
        name
        for name in checkpoint.names - plan.known
        if not any(re.search(expression, name) for expression in family.ignored)
    )
    if plan.missing:
        raise ModelError(
            f"the checkpoint in {checkpoint.folder} lacks weights of {type(model).__name__}",
            found=f"no {listed(plan.missing)}" + (f"; not used: {listed(unexpected)}" if unexpected else ""),
            fix="check that config.json belongs to these weights",
        )
    dtype = dtype or checkpoint.main_dtype()
    _start_anew(model, [names for names, _ in plan.fresh], dtype)
    for names, source, target in plan.sources:
        tensor = to_ours(source, checkpoint.read, target.shape)
        kept = not target.is_floating_point() or names[0].endswith(family.keep_float32)
        _place(model, names, target, tensor.to(device, target.dtype if kept else dtype))
    checkpoint.close()
    model.to(device)  # what is started anew, and buffers that no file holds
    if unexpected:
        logger.warning("%s: not used by %s: %s", checkpoint.folder, type(model).__name__, listed(unexpected, 40))
    if plan.fresh:
        reasons = "; ".join(f"{names[0]} ({reason})" for names, reason in plan.fresh)
        logger.warning("%s: started anew, to be trained before use: %s", checkpoint.folder, reasons)


@dataclass
class _Plan:
    sources: list[tuple[list[str], Source, Tensor]] = field(default_factory=list)
    """Our names of one weight, where it comes from, and what it stands in for."""
    fresh: list[tuple[list[str], str]] = field(default_factory=list)
    """Our names of each head weight to start anew, and why."""
    missing: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    """Their names that some weight of ours stands for."""


def _plan(model: nn.Module, family: Family, rules: Sequence[Rule], checkpoint: Checkpoint) -> _Plan:
    plan = _Plan()
    names = checkpoint.names
    for ours, target in stored_weights(model):
        found = [source for name in ours if (source := source_of(name, target.shape, rules)) is not None]
        present = [_present(source, names, family.base_prefix) for source in found]
        plan.known.update(name for source in present if source is not None for name in source.names)
        source = next((source for source in present if source is not None), None)
        is_head = ours[0].startswith(family.heads) if family.heads else False
        if source is None:
            if is_head:
                plan.fresh.append((ours, "not in the checkpoint"))
            elif found or isinstance(target, nn.Parameter):
                optional = ours[0].endswith("num_batches_tracked")  # as torch has it: older files lack it
                plan.missing += [] if optional else [found[0].names[0] if found else ours[0]]
        elif is_head and (size := _other_size(source, target, checkpoint)) is not None:
            plan.fresh.append((ours, f"{size} in the checkpoint, {tuple(target.shape)} here"))
        else:
            plan.sources.append((ours, source, target))
    layers = {_owner(ours) for ours, _ in plan.fresh}  # a layer is started anew as a whole: its weight with its bias
    plan.fresh += [(ours, "with the rest of its layer") for ours, _, _ in plan.sources if _owner(ours) in layers]
    plan.sources = [entry for entry in plan.sources if _owner(entry[0]) not in layers]
    return plan


def _owner(names: Sequence[str]) -> str:
    """Return the name of the layer that holds a weight."""
    return names[0].rpartition(".")[0]


def stored_weights(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return the parameters and stored buffers, each with all its names (more than one where weights are tied)."""
    groups: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(groups.values())


def _present(source: Source, names: set[str], base_prefix: str) -> Source | None:
    """Return the source under the names the checkpoint uses, None where it lacks one of them."""
    found = []
    for name in source.names:
        spelling = next((text for text in _spellings(name, base_prefix) if text in names), None)
        if spelling is None:
            return None
        found.append(spelling)
    return Source(tuple(found), source.how)


def _spellings(name: str, base_prefix: str) -> list[str]:
    """Return how a name may be written: with or without the base prefix, norms also as TensorFlow has them."""
    texts = [name]
    if base_prefix:
        texts.append(name.removeprefix(base_prefix) if name.startswith(base_prefix) else base_prefix + name)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, legacy in old.items():
        texts += [text.removesuffix(new) + legacy for text in texts if text.endswith(new)]
    return texts


def _other_size(source: Source, target: Tensor, checkpoint: Checkpoint) -> tuple[int, ...] | None:
    shape = checkpoint.shape(source.names[0])
    return shape if shape != part_shape(source, target.shape) else None


def _start_anew(model: nn.Module, fresh: Sequence[list[str]], dtype: torch.dtype) -> None:
    """Give these weights memory and the values of a new model; all others have no memory yet and are not touched."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    fresh = [names for names in fresh if names[0] in weights]  # a buffer has its first value from the start
    for names in fresh:
        target = weights[names[0]]
        _place(model, names, target, torch.zeros_like(target, device="cpu"))
    for owner in dict.fromkeys(map(_owner, fresh)):
        reset = getattr(model.get_submodule(owner), "reset_parameters", None)
        if callable(reset):
            reset()
    initialise: Any = getattr(model, "init_weights", None)
    if fresh and initialise is not None:
        initialise()
    for names in fresh:
        weight = model.get_parameter(names[0])
        _place(model, names, weight, weight.detach().to(dtype))


def _place(model: nn.Module, names: Sequence[str], target: Tensor, tensor: Tensor) -> None:
    """Put a tensor in the place of `target` under all its names."""
    if isinstance(target, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=target.requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensor)
