"""The optimizer a config means, over a model's parameters in groups: who decays, who learns at which rate.

Not here: the schedule (`schedules.py`) and clipping (`clipping.py`). The rate of a group when made is its peak.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepseek.errors import ConfigError
from deepseek.optim.depth import layer_depths
from deepseek.optim.lean_adamw import LeanAdamW, StateBits, state_bytes_per_number
from deepseek.optim.muon import MuonAdamW, hidden_matrices
from deepseek.optim.offload import OffloadedAdamW

logger = logging.getLogger("deepseek.optim")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """What `build_optimizer` needs to know. Raises ConfigError for settings that exclude each other."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    layer_decay: float | None = None
    optimizer_bits: StateBits = 32
    offload_optimizer: bool = False
    weights_dtype: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError("unknown optimizer", found=repr(self.optimizer), wanted="adamw or muon")
        lean = self.optimizer_bits != 32 or self.weights_dtype == "bf16"
        if self.optimizer == "muon" and (self.offload_optimizer or self.weights_dtype == "bf16"):
            found = "weights_dtype: bf16" if self.weights_dtype == "bf16" else "offload_optimizer: true"
            raise ConfigError(f"muon does not go with {found}", fix="optimizer: adamw")
        if self.offload_optimizer and self.optimizer_bits != 32:
            raise ConfigError(
                "states in main memory are not made smaller",
                found=f"offload_optimizer: true and optimizer_bits: {self.optimizer_bits}",
                fix="choose one of the two",
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError("layer_decay is out of range", found=self.layer_decay, wanted="above 0, at most 1")
        if lean and self.optimizer_bits not in (8, 16, 32):
            raise ConfigError("optimizer_bits is out of range", found=self.optimizer_bits, wanted="8, 16 or 32")

    @classmethod
    def of(cls, config: Any) -> OptimizerSettings:
        """Return the settings found in the attributes of `config`; what it lacks keeps its default."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(config, field.name)]
        values = {name: getattr(config, name) for name in names}
        if "betas" in values:
            values["betas"] = (float(values["betas"][0]), float(values["betas"][1]))
        return cls(**values)


def build_optimizer(model: nn.Module, config: Any) -> Optimizer:
    """Return the optimizer that `config` (TrainConfig, OptimizerSettings or the like) means, over `model`.

    With `weights_dtype: bf16` the matrices of `model` become bfloat16 first (`use_bf16_weights`). On a model not on a
    GPU `offload_optimizer` has no effect and warns. Raises ConfigError for settings that exclude each other.
    """
    settings = config if isinstance(config, OptimizerSettings) else OptimizerSettings.of(config)
    if settings.weights_dtype == "bf16":
        use_bf16_weights(model)
    rates: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    if settings.optimizer == "muon":
        inside = {id(p) for p in hidden_matrices(model)}
        groups = parameter_groups(model, settings)
        matrices, others = _part(groups, inside, keep=True), _part(groups, inside, keep=False)
        return MuonAdamW(matrices, others, state_bits=settings.optimizer_bits, **rates)
    groups = parameter_groups(model, settings)
    if settings.offload_optimizer:
        if any(p.device.type != "cpu" for p in model.parameters()):
            return OffloadedAdamW(groups, **rates)
        logger.warning("offload_optimizer has no effect: the model is in main memory already")
    if settings.optimizer_bits != 32 or settings.weights_dtype == "bf16":
        return LeanAdamW(groups, state_bits=settings.optimizer_bits, **rates)
    return torch.optim.AdamW(groups, fused=True, **rates)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the trained parameters in groups of one rate and one weight decay.

    What has two dimensions or more decays, vectors (biases, norms) do not. With `layer_decay` the rate of a layer is
    this share of the one above it, the head's the full one.
    """
    depths = layer_depths(model) if settings.layer_decay not in (None, 1.0) else {}
    top = max(depths.values(), default=0)
    if depths and top == 0:
        logger.warning("layer_decay has no effect: %s has no list of blocks", type(model).__name__)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, decays = depths.get(name, top), parameter.dim() >= 2 and settings.weight_decay > 0
        group = groups.setdefault((depth, decays), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = settings.weight_decay if decays else 0.0
        if top:
            group["lr"] = settings.learning_rate * (settings.layer_decay or 1.0) ** (top - depth)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def use_bf16_weights(model: nn.Module) -> None:
    """Turn the float32 parameters with two dimensions or more into bfloat16, in place; vectors and buffers stay.

    For a model trained under bfloat16 autocast, which takes care of the mixture. Parameters keep their identity.
    """
    for parameter in model.parameters():
        if parameter.dim() >= 2 and parameter.dtype is torch.float32:
            parameter.data = parameter.data.bfloat16()


def use_fp32_weights(model: nn.Module) -> None:
    """Turn the bfloat16 parameters back into float32, in place: what a trained model is saved as."""
    for parameter in model.parameters():
        if parameter.dtype is torch.bfloat16:
            parameter.data = parameter.data.float()


def state_bytes(model: nn.Module | Iterable[Tensor], config: Any) -> int:
    """Return the bytes of the states that `build_optimizer` would keep, on the device they are updated on.

    Works on shapes alone (meta device too). AdamW 8 a number, Muon's matrices 4, 16-bit states 4, 8-bit ones 2.03,
    offloaded ones 0: they are in main memory (12, with the float32 copy of the weights).
    """
    settings = config if isinstance(config, OptimizerSettings) else OptimizerSettings.of(config)
    trained = list(model.parameters()) if isinstance(model, nn.Module) else list(model)
    trained = list({id(p): p for p in trained if p.requires_grad}.values())
    if settings.offload_optimizer and any(p.device.type == "cuda" for p in trained):
        return 0
    muon = settings.optimizer == "muon" and isinstance(model, nn.Module)
    inside = {id(p) for p in hidden_matrices(model)} if muon and isinstance(model, nn.Module) else set()
    total = 0.0
    for p in trained:
        a_number = 4.0 if id(p) in inside else state_bytes_per_number(settings.optimizer_bits, p.numel())
        total += p.numel() * a_number
    return round(total)


def _part(groups: list[dict[str, Any]], inside: set[int], *, keep: bool) -> list[dict[str, Any]]:
    """Return the groups with only the parameters that are `inside`, or only the others."""
    parts = [{**group, "params": [p for p in group["params"] if (id(p) in inside) == keep]} for group in groups]
    return [part for part in parts if part["params"]]
