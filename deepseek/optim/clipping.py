"""Gradient clipping: by a fixed norm, by a running quantile of the norm, or unit by unit (AGC).

A clipper is called with the parameters once their gradients are complete, scales the gradients in place and returns
their norm before, as a tensor: nothing here waits for a GPU. The same gradients give the same bits.
`ClippedStep` (`clipped_step.py`) folds the scaling into the optimizer instead.
Sources: Pascanu et al. 2013, arXiv:1211.5063 (norm); Brock et al. 2021, "High-performance large-scale image recognition
without normalization", arXiv:2102.06171 (AGC); Seetharaman et al. 2020, "AutoClip", arXiv:2007.14469 (quantile).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError, ConfigError, did_you_mean

EPSILON = 1e-6  # torch's own, so that the numbers are those of clip_grad_norm_


@runtime_checkable
class Clipper(Protocol):
    """What limits gradients. Its state is part of a checkpoint."""

    def __call__(self, parameters: list[Tensor]) -> Tensor:
        """Scale every `.grad` in place; return the norm of all of them before, a float32 scalar."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        ...


class TotalNormClip:
    """Base of the clippers that scale all gradients by one factor: those below say how large the norm may be."""

    def limit(self, norm: Tensor) -> Tensor:
        """Return the largest norm allowed in this step, whose norm is `norm`. Called once a step."""
        raise TypeError("TotalNormClip only serves as a base; use NormClip or QuantileClip")

    @torch.no_grad()
    def factor(self, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the norm of the gradients and the factor, at most 1, that would clip them; change nothing."""
        norm = total_norm(parameters)
        return norm, torch.clamp(self.limit(norm) / (norm + EPSILON), max=1.0)

    @torch.no_grad()
    def __call__(self, parameters: list[Tensor]) -> Tensor:
        """Scale every `.grad` in place; return the norm before."""
        norm, factor = self.factor(parameters)
        if norm.device.type == "cpu" and float(factor) == 1.0:
            return norm  # on a CPU looking costs nothing, and multiplying by 1 a pass over memory
        scale_gradients(parameters, factor)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""


class NormClip(TotalNormClip):
    """Gradients whose norm together is above `max_norm` are scaled down to it; infinity leaves them.

    The same numbers as `torch.nn.utils.clip_grad_norm_`. Raises ConfigError for a limit that is not above 0.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        if not max_norm > 0:
            raise ConfigError("gradients can't be clipped to this norm", found=max_norm, wanted="a number above 0")
        self.max_norm = float(max_norm)

    def limit(self, norm: Tensor) -> Tensor:
        """Return `max_norm`."""
        return torch.full_like(norm, self.max_norm)


class QuantileClip(TotalNormClip):
    """Gradients are scaled down to the `quantile` of the norms of the latest `window` steps, as they were before.

    The limit follows the run, so no norm has to be guessed. The first `warmup` steps, by default 10, are not
    clipped. A norm that is not finite never enters the window. Raises ConfigError for settings out of range.
    """

    def __init__(self, quantile: float = 0.9, window: int = 200, warmup: int | None = None) -> None:
        warmup = min(10, window) if warmup is None else warmup
        if not 0 < quantile <= 1:
            raise ConfigError("this is no quantile to clip to", found=quantile, wanted="above 0, at most 1")
        if not 1 <= warmup <= window <= 1 << 16:
            raise ConfigError(
                "these norms can't be remembered",
                found=f"warmup {warmup}, window {window}",
                wanted="1 <= both <= 65536",
            )
        self.quantile, self.window, self.warmup = quantile, window, warmup
        self.norms = torch.full((window,), math.nan)
        self.seen = torch.zeros((), dtype=torch.int64)

    def limit(self, norm: Tensor) -> Tensor:
        """Return the quantile of the norms before this one, and remember this one."""
        if self.norms.device != norm.device:
            self.norms, self.seen = self.norms.to(norm.device), self.seen.to(norm.device)
        known = torch.nanquantile(self.norms, self.quantile)
        limit = torch.where(self.seen < self.warmup, math.inf, known)
        place, finite = (self.seen % self.window).view(1), norm.isfinite()
        value = torch.where(finite, norm, self.norms.gather(0, place))
        self.norms.index_copy_(0, place, value)
        self.seen += finite
        return limit

    def state_dict(self) -> dict[str, Any]:
        """Return the norms remembered, and how many there were."""
        return {"norms": self.norms.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Raises CheckpointError for a window of another length."""
        if state["norms"].shape != self.norms.shape:
            raise CheckpointError(
                "the checkpoint remembers another number of gradient norms",
                found=len(state["norms"]),
                wanted=self.window,
                fix="resume with the clipping window the run began with",
            )
        self.norms, self.seen = state["norms"].clone(), state["seen"].clone()


class AdaptiveClip:
    """AGC: the gradient of a unit (a row of a matrix, a filter) is at most `factor` times the norm of its weights.

    A vector is one unit. Weights of norm below `epsilon` count as `epsilon`, so that zeros can be learned. `skip`: the
    parameters to leave, for the paper those of the last layer. Raises ConfigError for settings that are not above 0.
    """

    def __init__(self, factor: float = 0.01, epsilon: float = 1e-3, skip: Iterable[Tensor] = ()) -> None:
        if not (factor > 0 and epsilon > 0):
            raise ConfigError("AGC needs numbers above 0", found=f"factor {factor}, epsilon {epsilon}")
        self.clip_factor, self.epsilon = factor, epsilon
        self._skip = {id(parameter): parameter for parameter in skip}  # kept alive, so that no id is used anew

    @torch.no_grad()
    def __call__(self, parameters: list[Tensor]) -> Tensor:
        """Scale every unit's gradient in place; return the norm of all gradients before."""
        norm = total_norm(parameters)
        chosen = [p for p in parameters if p.grad is not None and id(p) not in self._skip]
        if not chosen:
            return norm
        gradients = [p.grad for p in chosen if p.grad is not None]
        allowed = [_unit_norm(p) for p in chosen]
        torch._foreach_clamp_min_(allowed, self.epsilon)
        torch._foreach_mul_(allowed, self.clip_factor)
        actual = [_unit_norm(gradient) for gradient in gradients]
        torch._foreach_clamp_min_(actual, EPSILON)
        torch._foreach_div_(allowed, actual)
        torch._foreach_clamp_max_(allowed, 1.0)
        torch._foreach_mul_(gradients, [f.to(g.dtype) for f, g in zip(allowed, gradients, strict=True)])
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""


ClipValue = float | str | Mapping[str, Any] | Clipper | None

_KINDS: dict[str, type[NormClip] | type[QuantileClip] | type[AdaptiveClip]] = {
    "norm": NormClip,
    "quantile": QuantileClip,
    "adaptive": AdaptiveClip,
}


def make_clipper(value: ClipValue, model: nn.Module | None = None) -> Clipper:
    """Return the clipper a config means: a norm, a name (norm, quantile, adaptive), or `{kind: name, ...settings}`.

    None only measures. For "adaptive" the last layer of `model` is left alone, as in the paper, where there is one.
    Raises ConfigError for an unknown kind or setting.
    """
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return NormClip(math.inf if value is None else value)
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        if isinstance(value, Clipper):
            return value
        raise ConfigError("this is no way to clip", found=repr(value), wanted="a norm, or one of " + ", ".join(_KINDS))
    settings = dict(value)
    kind = str(settings.pop("kind", None))
    if kind not in _KINDS:
        raise ConfigError("unknown kind of clipping", found=kind, fix=did_you_mean(kind, _KINDS))
    known = [name for name in inspect.signature(_KINDS[kind]).parameters if name != "skip"]
    for name in settings:
        if name not in known:
            raise ConfigError(f"clipping '{kind}' has no setting '{name}'", fix=did_you_mean(name, known))
    if kind == "adaptive" and model is not None:
        settings["skip"] = last_layer(model)
    return _KINDS[kind](**settings)


def last_layer(model: nn.Module) -> list[Tensor]:
    """Return the parameters of the last linear or convolution layer, or none where an embedding shares its weight."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [p for p in layers[-1].parameters() if id(p) not in shared] if layers else []


def total_norm(parameters: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together: a float32 scalar on their device, 0 without any."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(gradients).float()


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor) -> None:
    """Multiply every gradient by `factor`, a scalar, in place."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            by_kind.setdefault((p.grad.device, p.grad.dtype), []).append(p.grad)
    for (device, _), gradients in by_kind.items():
        torch._foreach_mul_(gradients, factor.to(device))


def _unit_norm(tensor: Tensor) -> Tensor:
    """Return the norm of each unit of `tensor` in float32, in a shape that multiplies it: (units, 1, ...) or ()."""
    axes = tuple(range(1, tensor.dim())) if tensor.dim() > 1 else None
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=axes is not None, dtype=torch.float32)
    return norm
