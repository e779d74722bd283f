"""An exponential moving average of the weights: what validation measures and the trained model holds.

average <- decay * average + (1 - decay) * weights, after Polyak and Juditsky 1992 (doi:10.1137/0330046). At the start
the decay is (1 + n) / (10 + n) after n steps, as far as that is smaller, so that the first weights are soon forgotten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError, ConfigError
from deepseek.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState


class EMA(Callback):
    """Keeps the average of all trained parameters; buffers (BatchNorm statistics) are those of the model itself.

    `decay` is that of one step; with `every` > 1 the average takes up each n-th step with decay ** every, so that it
    reaches back as far. `warmup` begins with a smaller decay (see above). The average is float32 where the weights have
    fewer bits, costs that much memory (twice during a validation), and is in every checkpoint.

    Validation sees the average, put into the model in place: compiled steps and optimizers notice nothing. At the end
    of the run it stays there, so the bundle holds it; checkpoints hold both.
    Raises ConfigError for a decay outside [0, 1) or `every` below 1.
    """

    def __init__(self, decay: float = 0.999, *, every: int = 1, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("EMA's decay is wrong", found=decay, wanted="at least 0 and below 1, such as 0.999")
        if every < 1:
            raise ConfigError("EMA's every is wrong", found=every, wanted="at least 1 step")
        self.decay = decay
        self.every = every
        self.warmup = warmup
        self.average: dict[str, Tensor] = {}
        """The averaged parameters by name; empty before the run begins."""
        self.keeps_model = False
        """Set by a callback that puts other weights into the trained model: the average then leaves it alone."""
        self._weights: list[Tensor] = []
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._kept: list[Tensor] | None = None

    def on_train_begin(self, state: RunState) -> None:
        trained = {name: p.detach() for name, p in trained_parameters(state.model)}
        if state.step == 0 or not self.average:
            self.average = {name: weight.to(_wide(weight.dtype), copy=True) for name, weight in trained.items()}
        _check_same(self.average, trained)
        self.average = {name: self.average[name].to(weight.device) for name, weight in trained.items()}
        self.keeps_model = False
        self._kept = None
        self._weights = list(trained.values())
        self._pairs = _by_type(list(self.average.values()), self._weights)

    @torch.no_grad()
    def on_step_end(self, state: RunState) -> None:
        if state.step % self.every:
            return
        share = 1 - self.decay_at(state.step) ** self.every
        for averages, weights in self._pairs:
            if averages[0].dtype == weights[0].dtype:
                torch._foreach_lerp_(averages, weights, share)
            else:
                for average, weight in zip(averages, weights, strict=True):
                    average.lerp_(weight.to(average.dtype), share)  # one at a time: no second copy of all weights

    def decay_at(self, step: int) -> float:
        """Return the decay of one step after `step` steps."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def on_validation_begin(self, state: RunState) -> None:
        self.swap_in()

    def on_validation_end(self, state: RunState) -> None:
        self.swap_out()

    def on_exception(self, state: RunState) -> None:
        self.swap_out()

    def on_train_end(self, state: RunState) -> None:
        if not self.keeps_model:
            self.swap_in()
            self._kept = None

    def close(self) -> None:
        self._weights, self._pairs, self._kept = [], [], None

    @torch.no_grad()
    def swap_in(self) -> bool:
        """Put the average into the model; return False where it is there already."""
        if self._kept is not None:
            return False
        self._kept = [weight.clone() for weight in self._weights]
        for averages, weights in self._pairs:
            torch._foreach_copy_(weights, averages)
        return True

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the model's own weights back, bit by bit as they were."""
        if self._kept is not None:
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.copy_(kept)
            self._kept = None

    def state_dict(self) -> dict[str, Any]:
        return {"average": dict(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        stored = {name: average.clone() for name, average in state["average"].items()}
        if not self._weights:
            self.average = stored
            return
        _check_same(stored, self.average)  # a run set back to a checkpoint: its steps hold on to these tensors
        for name, average in self.average.items():
            average.copy_(stored[name])


@contextlib.contextmanager
def averaged_weights(callbacks: Iterable[Callback]) -> Iterator[None]:
    """Have the average in the model inside the block, where one of the callbacks is an EMA."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            if isinstance(callback, EMA) and callback.swap_in():
                stack.callback(callback.swap_out)
        yield


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that training changes, by name; one that is used in two places, once."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype


def _by_type(averages: list[Tensor], weights: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the pairs in lists of one device and dtype, as torch's operations on lists want them."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for average, weight in zip(averages, weights, strict=True):
        both = groups.setdefault((weight.device, weight.dtype), ([], []))
        both[0].append(average)
        both[1].append(weight)
    return list(groups.values())


def _check_same(stored: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    different = sorted(set(stored) ^ set(own)) + [
        f"{name}: {tuple(stored[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(set(stored) & set(own))
        if stored[name].shape != own[name].shape
    ]
    if different:
        raise CheckpointError("the stored average is of another model", found=", ".join(different[:6]))
