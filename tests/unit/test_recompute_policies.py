"""Recompute changes memory and nothing else: equal gradients, dropout and running statistics, in any model."""

from __future__ import annotations

import copy
import logging
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek.errors import ConfigError
from deepseek.models.factory import build
from deepseek.train.recompute import activation_budget, apply_recompute, find_blocks, recomputing

SMALL: dict[str, dict[str, Any]] = {
    "gpt": {
        "name": "GPT",
        "num_layers": 3,
        "d_model": 32,
        "num_heads": 2,
        "vocab_size": 50,
        "max_length": 16,
        "dropout": 0.2,
    },
    "bert": {
        "name": "BERT",
        "num_layers": 3,
        "d_model": 32,
        "num_heads": 2,
        "vocab_size": 50,
        "max_length": 16,
        "head": "masked_lm",
    },
    "vit": {"name": "vit-s16", "num_layers": 3, "d_model": 32, "num_heads": 2, "image_size": 32, "dropout": 0.1},
    "conformer": {
        "name": "Conformer",
        "encoder": {"num_layers": 3, "d_model": 32, "attention_heads": 2, "dropout": 0.1},
        "decoder": {"vocab_size": 20, "embedding_dim": 32, "num_layers": 1, "attention_heads": 2},
    },
    "resnet": {"name": "resnet18", "stem_size": 8, "hidden_sizes": [8, 8, 16, 16], "image_size": 32},
}
POLICIES: list[Any] = ["selective", "full", ["mm", "addmm", "gelu"]]


def small(name: str) -> nn.Module:
    torch.manual_seed(3)
    return build(SMALL[name]).train()


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [leaf for part in value if part is not None for leaf in leaves(part)] if isinstance(value, tuple) else []


def gradients(model: nn.Module, autocast: bool = False) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = model.example_inputs(2)  # type: ignore[operator]
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**inputs)
    torch.stack([leaf.float().square().mean() for leaf in leaves(out)]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._less, storage.nbytes())
        return result

    def _less(self, size: int) -> None:
        self.now -= size


def held_after_forward(model: nn.Module) -> int:
    inputs: dict[str, Tensor] = model.example_inputs(8)  # type: ignore[operator]
    with Held() as held:
        out = model(**inputs)
        kept = held.now
    del out
    return kept


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_of_the_plain_model(name: str, policy: Any) -> None:
    plain = small(name)
    model = apply_recompute(copy.deepcopy(plain), policy)
    wanted, found = gradients(plain), gradients(model)
    assert found.keys() == wanted.keys() and len(found) > 10
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)
    for (key, value), other in zip(plain.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(other, value, msg=key)  # batch norms have counted the batch once


@pytest.mark.parametrize("name", ["gpt", "bert", "vit", "conformer"])
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    plain, selective, full = (
        held_after_forward(apply_recompute(small(name), policy)) for policy in ("none", "selective", "full")
    )
    assert full < selective < plain and full < 0.6 * plain


def test_bfloat16_gradients_are_equal_too() -> None:
    wanted = gradients(small("gpt"), autocast=True)
    for policy in ("selective", "full"):
        found = gradients(apply_recompute(small("gpt"), policy), autocast=True)  # type: ignore[arg-type]
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-4, msg=key)


def test_a_model_keeps_its_state_and_can_be_copied_and_put_back() -> None:
    model = small("gpt")
    names = list(model.state_dict())
    apply_recompute(model, "full")
    assert list(model.state_dict()) == names and len(find_blocks(model)) == 3
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert float(twin(ids).detach().abs().max()) == 0.0  # the copy's blocks are its own
    assert float(model(ids).detach().abs().max()) > 0.0
    with recomputing(model, "selective"):
        pass
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_nothing_is_recomputed_in_eval_mode_or_without_gradients() -> None:
    calls = []
    model = small("gpt")
    model.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index, union-attr]
    apply_recompute(model, "full")
    gradients(model)
    assert len(calls) == 2
    calls.clear()
    gradients(model.eval())
    with torch.no_grad():
        model.train()(torch.zeros(1, 4, dtype=torch.int64))
    assert len(calls) == 2


def test_any_model_with_lists_of_blocks_will_do() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()
    x = torch.randn(2, 5, 16)
    model(x).square().sum().backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert len(find_blocks(model)) == 2
    apply_recompute(model, "full")(x).square().sum().backward()
    for parameter, value in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, value)


def test_a_model_without_blocks_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        apply_recompute(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "full")
    assert "recompute has no effect" in caplog.text


@pytest.mark.parametrize(
    ("policy", "message"),
    [("selectiv", "did you mean 'selective'"), (["addm"], "'addmm'"), ([], "operators' names"), (3, "recompute")],
)
def test_unknown_policies_are_refused(policy: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_recompute(small("gpt"), policy)


def test_the_budget_of_a_compiled_run_is_set_and_put_back() -> None:
    import torch._functorch.config as settings

    before = settings.activation_memory_budget
    with pytest.raises(ZeroDivisionError), activation_budget(0.25):
        assert settings.activation_memory_budget == 0.25
        raise ZeroDivisionError
    assert settings.activation_memory_budget == before
    with pytest.raises(ConfigError, match="0 to 1"), activation_budget(1.5):
        pass
