"""Recompute from outside, for any model: what a block's backward pass needs is computed again instead of kept.

`full` keeps a block's inputs alone; `selective` keeps the results of the matrix products and computes the cheap rest
again (norms, activations, dropout, softmax); a list of operators keeps the results of just these.
Not here: compiled runs, whose partitioner decides (`activation_budget` sets how much it may keep); which policy a run
needs (`memory/plan.py`); the templates' own `gradient_checkpointing`, which is the same as `full`.
Sources: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174; Korthikanti et al. 2022,
"Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from deepseek.errors import ConfigError, did_you_mean

logger = logging.getLogger("deepseek.train")

RecomputePolicy = Literal["none", "selective", "full"] | Sequence[str]
"""A name, or the operators (of `torch.ops.aten`: `mm`, `addmm`, `convolution`, ...) whose results are kept."""

_NAMES = ("none", "selective", "full")
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_PRODUCTS = ("mm", "addmm", "convolution", "_native_multi_head_attention")
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
_BATCHED = ("bmm", "baddbmm")


def apply_recompute(model: nn.Module, policy: RecomputePolicy) -> nn.Module:
    """Have the blocks of `model` (see `find_blocks`) follow `policy` in training; return the model itself.

    Gradients stay the same: dropout draws its numbers again, batch norms count a batch once. A later call takes the
    place of an earlier one, and `none` takes it away. Nothing changes in `state_dict`, in eval mode, without gradients,
    or while compiling. Raises ConfigError for an unknown policy or operator.
    """
    keep = check_policy(policy)
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Recomputed):
            del module.forward
    blocks = find_blocks(model) if policy != "none" else []
    if policy != "none" and not blocks:
        logger.warning("recompute has no effect: %s has no list of blocks", type(model).__name__)
    for block in blocks:
        block.forward = _Recomputed(block, keep)
    return model


def check_policy(policy: object) -> frozenset[Any] | Literal["selective"] | None:
    """Return what a policy keeps: operators, "selective", or None for nothing. Raises ConfigError."""
    if isinstance(policy, str):
        if policy not in _NAMES:
            raise ConfigError("unknown recompute policy", found=repr(policy), fix=did_you_mean(policy, _NAMES))
        return "selective" if policy == "selective" else None
    if not isinstance(policy, Sequence) or not policy or not all(isinstance(name, str) for name in policy):
        raise ConfigError(
            "unknown recompute policy", found=repr(policy), wanted=f"one of {_NAMES}, or operators' names"
        )
    return frozenset(_operator(name) for name in policy)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are recomputed: the outermost members of lists (ModuleList, Sequential, ModuleDict) that
    are made of several layers with weights."""
    found: list[nn.Module] = []
    seen: set[int] = set()

    def visit(module: nn.Module, listed: bool) -> None:
        for child in module.children():
            inside = listed or isinstance(module, _CONTAINERS)
            if inside and not isinstance(child, _CONTAINERS) and _is_compound(child):
                if id(child) not in seen:
                    seen.add(id(child))
                    found.append(child)
            elif id(child) not in seen:
                visit(child, isinstance(child, _CONTAINERS))

    visit(model, False)
    return found


@contextlib.contextmanager
def activation_budget(share: float) -> Iterator[None]:
    """What is compiled inside (at its first call, too) keeps about `share` of its activations, 0 to 1.

    1 is torch's own choice. It takes the place of `apply_recompute` in compiled runs. Raises ConfigError.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError("the share of activations to keep is out of range", found=repr(share), wanted="0 to 1")
    import torch._functorch.config as settings

    before = settings.activation_memory_budget
    settings.activation_memory_budget = float(share)
    try:
        yield
    finally:
        settings.activation_memory_budget = before


_COMPILED_SHARE = {"none": 1.0, "selective": 0.5, "full": 0.1}


@contextlib.contextmanager
def recomputing(model: nn.Module, policy: Literal["none", "selective", "full"]) -> Iterator[None]:
    """Have `model` follow `policy` while the block runs, eagerly or compiled, and as it was after it."""
    if policy == "none":
        yield
        return
    apply_recompute(model, policy)
    try:
        with activation_budget(_COMPILED_SHARE[policy]):
            yield
    finally:
        apply_recompute(model, "none")


class _Recomputed:
    """Takes the place of a block's `forward`. An object, not a function, so that a deep copy is about the copy."""

    def __init__(self, block: nn.Module, keep: frozenset[Any] | Literal["selective"] | None) -> None:
        self.block = block
        self.keep = keep

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block = self.block
        plain: Callable[..., Any] = type(block).forward
        if not block.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return plain(block, *args, **kwargs)
        spare, passes = _statistics(block), 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            with _using(spare if passes > 1 else []):
                return plain(block, *args, **kwargs)

        if self.keep is None:
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> Any:
        keep = self.keep
        if keep == "selective":
            return create_selective_checkpoint_contexts(_selective)  # type: ignore[no-untyped-call]

        def listed(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            return _verdict(operator.overloadpacket in keep) if keep else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(listed)  # type: ignore[no-untyped-call]


_Statistics = list[tuple[nn.Module, str, Tensor]]


def _statistics(block: nn.Module) -> _Statistics:
    """Return copies of what the batch norms of a block count, for a second pass to count in.

    They are made before the first pass: the second one may do nothing that the first did not do.
    """
    return [
        (norm, name, buffer.clone())
        for norm in block.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
        for name, buffer in norm.named_buffers(recurse=False)
    ]


@contextlib.contextmanager
def _using(statistics: _Statistics) -> Iterator[None]:
    kept = [(norm, name, getattr(norm, name)) for norm, name, _ in statistics]
    try:
        for norm, name, spare in statistics:
            setattr(norm, name, spare)
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


def _selective(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep linear layers, convolutions and what attention puts out; not its scores, which grow with time squared."""
    name = operator.overloadpacket.__name__
    if name in _BATCHED:
        left, right = [arg for arg in args if isinstance(arg, Tensor)][-2:]
        result = left.shape[0] * left.shape[1] * right.shape[2]
        return _verdict(result <= max(left.numel(), right.numel()))
    return _verdict(name in _PRODUCTS or name in _ATTENTION)


def _verdict(kept: bool) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _operator(name: str) -> Any:
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None:
        known = [*_PRODUCTS, *_ATTENTION, *_BATCHED, "native_layer_norm", "native_batch_norm", "gelu", "_softmax"]
        raise ConfigError("unknown operator in recompute", found=repr(name), fix=did_you_mean(name, known))
    return packet


def _is_compound(module: nn.Module) -> bool:
    """Return whether a module is made of two or more layers that have weights of their own."""
    layers = sum(1 for part in module.modules() if any(True for _ in part.parameters(recurse=False)))
    return layers > 1 and any(True for _ in module.children())
