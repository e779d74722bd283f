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
from deepseek.optim.build import build_optimizer
from deepseek.optim.precision import Precision
from deepseek.tasks.language_modeling import LanguageModeling
from deepseek.tasks.supervised import Supervised
from deepseek.train.config import TrainConfig
from deepseek.train.memory import estimate as memory
from deepseek.train.memory.estimate import MemoryEstimate, estimate_training, refuse_if_too_large
from deepseek.train.step import TrainStep
from deepseek.train.trainer import Trainer
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
        optimizer = build_optimizer(model, TrainConfig())
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
def test_the_estimate_is_the_real_peak_of_live_bytes(name: str, checkpointing: bool) -> None:
    changes, batch_size, time_ = SIZES[name]
    config = toy_config(**changes, max_length=time_, gradient_checkpointing=checkpointing)
    batch = toy_batches(1, batch_size, time_)[0]
    for precision in ("fp32", "bf16"):
        settings, found = TrainConfig(async_checkpoints=False), Precision(precision, CPU)  # type: ignore[arg-type]
        estimate = estimate_training(lambda: GPT(config), LanguageModeling(), batch, settings, found)
        real = real_peak(config, batch, LanguageModeling(), precision)
        assert 0.97 <= (estimate.total - estimate.workspace) / real <= 1.03, precision


def test_what_saves_memory_lowers_the_estimate() -> None:
    def total(task: LanguageModeling, **changes: Any) -> int:
        config = toy_config(vocab_size=2000, max_length=64, num_layers=6, d_model=64, **changes)
        estimate = estimate_training(lambda: GPT(config), task, toy_batches(1, 8, 64)[0])
        return estimate.total - estimate.workspace

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


def estimate_of(config: TrainConfig, **changes: Any) -> MemoryEstimate:
    model = toy_config(**{"vocab_size": 100, "max_length": 64, "num_layers": 4, "d_model": 64, **changes})
    return estimate_training(lambda: GPT(model), LanguageModeling(), toy_batches(1, 8, 64)[0], config)


def test_each_setting_is_reckoned_with() -> None:
    plain = TrainConfig(async_checkpoints=False)
    base = estimate_of(plain)
    state = 3 * base.weights  # weights and AdamW's two averages
    assert base.copies == 0 and base.optimizer == 2 * base.weights == 2 * base.gradients
    assert estimate_of(plain.replace(async_checkpoints=True)).copies == state
    assert estimate_of(plain.replace(ema_decay=0.999)).copies == base.weights
    assert estimate_of(plain.replace(ema_decay=0.999, async_checkpoints=True)).copies == state + 2 * base.weights
    assert estimate_of(plain.replace(optimizer_bits=8)).optimizer < 0.3 * base.optimizer
    assert estimate_of(plain.replace(weights_dtype="bf16")).weights < 0.6 * base.weights
    accumulated = estimate_of(plain.replace(gradient_accumulation_steps=4))
    assert base.total < accumulated.total <= base.total + base.gradients  # gradients live through the forward pass
    selective, full = (estimate_of(plain.replace(recompute=policy)) for policy in ("selective", "full"))
    assert full.activations < selective.activations < base.activations


def test_a_model_that_exists_is_not_touched() -> None:
    torch.manual_seed(0)
    model = GPT(toy_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = toy_batches(1)[0]
    made = estimate_training(lambda: model, LanguageModeling(), batch, TrainConfig(weights_dtype="bf16"))
    assert made == estimate_training(
        lambda: GPT(toy_config()), LanguageModeling(), batch, TrainConfig(weights_dtype="bf16")
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == torch.float32
    assert all(p.grad is None for p in model.parameters())
    assert model.lm_head.weight is model.token_embedding.weight


def test_what_cannot_fit_is_refused_with_the_parts_and_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_available", lambda: 10 << 30)
    refuse_if_too_large(MemoryEstimate(1 << 30, 1 << 30, 2 << 30, 5 << 30), CPU)
    with pytest.raises(MemoryEstimateError) as caught:
        refuse_if_too_large(MemoryEstimate(1 << 30, 1 << 30, 2 << 30, 7 << 30), CPU)
    message = str(caught.value)
    assert "about 11.0 GiB needed" in message and "activations 7.0 GiB" in message and "10.0 GiB free" in message
    assert "lower batch_size" in message and "memory_budget" in message
    monkeypatch.setattr(memory, "memory_available", lambda: None)
    refuse_if_too_large(MemoryEstimate(1 << 60, 0, 0, 0), CPU)


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
