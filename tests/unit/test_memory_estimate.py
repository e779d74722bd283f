"""Will it fit: the estimate is close to the bytes really alive; what can't fit is refused before it is allocated."""

from __future__ import annotations

import time
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek.errors import MemoryEstimateError
from deepseek.hardware import memory_available
from deepseek.models.gpt import GPT, GPTConfig
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.train import memory
from deepseek.train.config import TrainConfig
from deepseek.train.memory import MemoryEstimate, estimate_training, refuse_if_too_large
from deepseek.train.step import TrainStep
from deepseek.train.trainer import Trainer, default_optimizer
from tests.toy_gpt import toy_batches, toy_config

CPU = torch.device("cpu")


class LiveTensors(TorchDispatchMode):
    """Watches every tensor that is made; `peak` is the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def real_peak(config: GPTConfig, batch: Any, task: LanguageModeling, precision: str) -> int:
    with LiveTensors() as live:
        model = GPT(config).train()
        optimizer = default_optimizer(model, TrainConfig())
        step = TrainStep(model, task, optimizer, Precision(precision, CPU))  # type: ignore[arg-type]
        for _ in range(2):
            step([batch])
    return live.peak


SIZES = {
    "wide": ({"d_model": 64, "vocab_size": 500}, 8, 64),
    "deep": ({"d_model": 32, "num_layers": 6, "vocab_size": 100}, 16, 32),
    "long": ({"d_model": 32, "vocab_size": 300}, 2, 384),
    "large vocabulary": ({"vocab_size": 4000, "d_model": 64}, 2, 128),
    "mostly weights": ({"d_model": 128, "vocab_size": 2000}, 1, 8),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_the_estimate_is_from_0_to_30_percent_above_the_real_peak(name: str, checkpointing: bool) -> None:
    changes, batch_size, time_ = SIZES[name]
    config = toy_config(**changes, max_length=time_, gradient_checkpointing=checkpointing)
    batch = toy_batches(1, batch_size, time_)[0]
    estimate = estimate_training(lambda: GPT(config), LanguageModeling(), batch)
    real = real_peak(config, batch, LanguageModeling(), "fp32")
    assert 1.0 <= estimate.total / real <= 1.3
    half = estimate.total - estimate.activations // 4
    assert 0.65 <= half / real_peak(config, batch, LanguageModeling(), "bf16") <= 1.3


def test_what_saves_memory_lowers_the_estimate() -> None:
    def total(task: LanguageModeling, **changes: Any) -> int:
        config = toy_config(vocab_size=2000, max_length=64, num_layers=6, d_model=64, **changes)
        return estimate_training(lambda: GPT(config), task, toy_batches(1, 8, 64)[0]).total

    plain = total(LanguageModeling())
    assert total(LanguageModeling(), gradient_checkpointing=True) < 0.65 * plain
    assert total(LanguageModeling(max_logits_bytes=1 << 18)) < 0.9 * plain
    assert total(LanguageModeling(), tie_embeddings=False) > plain


def test_batches_of_any_shape_can_be_reckoned() -> None:
    estimate = estimate_training(
        lambda: nn.Linear(100, 50), Supervised(nn.MSELoss()), (torch.zeros(8, 100), torch.zeros(8, 50))
    )
    assert estimate.weights == 4 * 5050 and estimate.optimizer == 2 * estimate.weights
    assert estimate.activations >= 2 * 4 * 8 * 50


def test_what_cannot_fit_is_refused_with_the_parts_and_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_available", lambda: 10 << 30)
    refuse_if_too_large(MemoryEstimate(1 << 30, 1 << 30, 2 << 30, 5 << 30), CPU, bf16=False)
    with pytest.raises(MemoryEstimateError) as caught:
        refuse_if_too_large(MemoryEstimate(1 << 30, 1 << 30, 2 << 30, 7 << 30), CPU, bf16=False)
    message = str(caught.value)
    assert "about 11.0 GiB needed" in message and "activations 7.0" in message and "10.0 GiB free" in message
    assert "lower batch_size" in message and "gradient_checkpointing" in message
    refuse_if_too_large(MemoryEstimate(1 << 30, 1 << 30, 2 << 30, 7 << 30), CPU, bf16=True)
    monkeypatch.setattr(memory, "memory_available", lambda: None)
    refuse_if_too_large(MemoryEstimate(1 << 60, 0, 0, 0), CPU, bf16=False)


@pytest.mark.parametrize(
    "changes",
    [{"d_model": 1 << 16, "num_layers": 64, "num_heads": 512}, {"vocab_size": 1 << 24, "d_model": 1 << 16}],
    ids=["width", "vocabulary"],
)
def test_absurd_sizes_are_refused_at_once_and_nothing_is_allocated(changes: dict[str, int]) -> None:
    pytest.importorskip("resource")
    import resource

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    trainer = Trainer(model_config=toy_config(**changes), train_dataset=toy_batches(2))
    with pytest.raises(MemoryEstimateError, match="would not fit"):
        trainer.train()
    assert trainer.model is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert time.monotonic() - start < 60


def test_the_memory_of_this_machine_is_known_on_linux() -> None:
    found = memory_available()
    assert found is None or 1 << 20 < found < 1 << 50
