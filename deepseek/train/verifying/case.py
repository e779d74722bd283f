"""What `verify_trainer` works on: a model that is never trained itself, and short runs of the Trainer on copies of it.

Every check goes through the Trainer that a user's run goes through. Not here: what is checked (`verify_*.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from deepseek.checkpoint.training_state import random_state, restore_random_state
from deepseek.errors import ModelError
from deepseek.hardware import resolve_device
from deepseek.tasks.task import Loss, Task, to_device
from deepseek.train.config import TrainConfig
from deepseek.train.trainer import Trainer

Mode = Literal["train", "without dropout", "eval"]
"""How a model computes while it is checked."""

_OWN_SETTINGS = {"compile": False, "progress": False, "tensorboard": False}
_LEFT_OUT = frozenset(
    {"epochs", "max_steps", "time_budget", "memory_budget", "gradient_accumulation_steps", "tokens_per_step"}
    | {"early_stopping", "validate_every", "checkpoint_every", "keep_checkpoints", "keep_best", "keep_every"}
    | set(_OWN_SETTINGS)
)
"""Settings that say how long a run is and what it leaves; the checks have their own."""


class ShortRun(NamedTuple):
    """What a short run of the Trainer left: losses of its steps, and the model."""

    losses: list[float]
    model: nn.Module


@dataclass
class VerifyCase:
    """The user's model, task, batches and settings. `model` is copied for each run and stays as it is."""

    model: nn.Module
    task: Task
    batches: list[Any]
    config: TrainConfig
    steps: int = 6
    build: Callable[[], nn.Module] | None = None
    """Makes the model anew, for a model that can't be copied."""
    validation: Any = None
    stream: Any = None
    """Where the batches came from, where that can be read from a position on."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What one check leaves for the next."""

    @property
    def device(self) -> torch.device:
        """The device that training would use."""
        return resolve_device(self.config.device)

    def fresh(self) -> nn.Module:
        """Return the model as it was given, with memory of its own. Raises ModelError if it can't be copied."""
        if self.build is not None:
            model = self.build()
            model.load_state_dict(self.model.state_dict())
            return model
        try:
            return copy.deepcopy(self.model)
        except (TypeError, RuntimeError) as error:
            raise ModelError(
                "the model can't be copied", found=error, fix="give a function that builds it in place of the model"
            ) from error

    def train(
        self,
        batches: Sequence[Any],
        steps: int,
        *,
        mode: Mode = "train",
        only: Collection[str] | None = None,
        **changes: Any,
    ) -> ShortRun:
        """Train a fresh model for `steps` on `batches`, one after the other; `changes` go to the Trainer.

        Of the user's settings those named in `only` hold, all (but how long a run is) where that is None. The global
        random numbers are left as they were.
        """
        model = self.fresh()
        resume = bool(changes.pop("resume", False))
        if isinstance(changes.get("optimizer"), type):
            changes["optimizer"] = changes["optimizer"](model)
        names = only if only is not None else self.config.model_fields_set - _LEFT_OUT
        settings = {name: getattr(self.config, name) for name in names}
        task = self.task if mode == "train" else _InMode(self.task, mode)
        with random_kept():
            trainer = Trainer(
                model=model, train_dataset=list(batches), task=task, **{**settings, **_OWN_SETTINGS, **changes}
            )
            result = trainer.train(max_steps=steps, resume=resume)
        return ShortRun(list(result.losses), model)

    def gradient(self, parts: Sequence[Any], *, mode: Mode = "train", seed: int = 0) -> dict[str, Tensor]:
        """Return the gradient of one step of micro-batches `parts` in float32, by parameter."""
        run = self.train(
            parts,
            1,
            mode=mode,
            only={"device", "recompute"},
            seed=seed,
            optimizer=_GradientKeeper,
            precision="fp32",
            max_grad_norm=None,
            gradient_accumulation_steps=len(parts),
        )
        return {name: p.kept for name, p in run.model.named_parameters() if hasattr(p, "kept")}

    def loss_sum(self, model: nn.Module, batch: Any, *, mode: Mode = "train", seed: int = 0) -> Tensor:
        """Return the task's loss of one batch, not divided, the random numbers seeded for it."""
        with random_kept():
            torch.manual_seed(seed)
            task = self.task if mode == "train" else _InMode(self.task, mode)
            return task.loss_sum(model, to_device(batch, self.device))


class _GradientKeeper(Optimizer):
    """An optimizer that changes no weight and keeps each gradient beside its parameter, as `kept`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.kept = parameter.grad.detach().clone().cpu()


class _InMode:
    """A task whose losses are computed without dropout, or in eval mode."""

    def __init__(self, task: Task, mode: Mode) -> None:
        self._task = task
        self._mode = mode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Return the task's loss."""
        return Loss(self.loss_sum(model, batch), self._task.count(batch))

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the task's sum of losses in this mode."""
        if self._mode == "eval":
            model.eval()
        with without_dropout():
            return self._task.loss_sum(model, batch)


class without_dropout(TorchFunctionMode):  # noqa: N801  # type: ignore[misc]
    """A context in which torch's dropout functions give back what they got; modules and functions alike."""

    _DROPOUTS = frozenset(
        {F.dropout, F.alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout, torch.dropout}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, its dropout taken out."""
        kwargs = dict(kwargs or {})
        if func in self._DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            kwargs |= {"dropout_p": 0.0} if len(args) < 5 else {}
            args = (*args[:4], 0.0, *args[5:]) if len(args) >= 5 else args
        return func(*args, **kwargs)


@contextmanager
def random_kept() -> Iterator[None]:
    """A block that leaves the global random numbers as they were."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def relative_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest difference of any tensor, relative to its norm, and that tensor's name.

    Tensors whose norm is below 1e-3 of the largest count as if they had that: what should be zero is all rounding.
    A tensor that only one side has is an infinite difference.
    """
    lonely = sorted(set(ours) ^ set(theirs))
    if lonely:
        return float("inf"), lonely[0]
    floor = 1e-3 * max((float(value.double().norm()) for value in ours.values()), default=0.0)
    worst, where = 0.0, ""
    for name, value in ours.items():
        scale = max(float(value.double().norm()), floor)
        gap = float((value.double() - theirs[name].double()).norm())
        relative = gap / scale if scale else (float("inf") if gap else 0.0)
        if not relative <= worst:  # not a number counts as worst
            worst, where = (relative if relative == relative else float("inf")), name
    return worst, where
