"""Attention: the plain and the fused form, masks and caches all give the same numbers as attention written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from deepseek.errors import ModelError
from deepseek.models.gpt import GPT
from deepseek.nn import dot_product_attention as module
from deepseek.nn.dot_product_attention import attention
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.masks import document_mask
from tests.toy_gpt import toy_config, toy_gpt


def reference(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Attend token by token in float64; `allowed` (batch, time, key_time)."""
    q, k, v = query.double(), key.double(), value.double()
    out = torch.zeros_like(q)
    batch, heads, time, head_dim = q.shape
    for b in range(batch):
        for h in range(heads):
            for t in range(time):
                seen = [s for s in range(k.shape[2]) if allowed[b, t, s]]
                scores = torch.stack([q[b, h, t] @ k[b, h, s] / math.sqrt(head_dim) for s in seen])
                out[b, h, t] = sum(w * v[b, h, s] for w, s in zip(scores.softmax(0), seen, strict=True))
    return out.float()


def random_heads(past: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5 + past, 4), torch.randn(2, 3, 5 + past, 4)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("past", [0, 3])
def test_both_forms_are_causal_attention(monkeypatch: pytest.MonkeyPatch, plain: bool, past: int) -> None:
    monkeypatch.setattr(module, "_PLAIN_TIME", 1024 if plain else 0)
    query, key, value = random_heads(past)
    allowed = torch.tensor([[s <= t + past for s in range(5 + past)] for t in range(5)]).expand(2, -1, -1)
    torch.testing.assert_close(
        attention(query, key, value, causal=True), reference(query, key, value, allowed), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("plain", [True, False])
def test_both_forms_keep_inside_a_document(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(module, "_PLAIN_TIME", 1024 if plain else 0)
    query, key, value = random_heads()
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 2, 3]])
    allowed = torch.tensor(
        [[[s <= t and row[s] == row[t] for s in range(5)] for t in range(5)] for row in documents.tolist()]
    )
    found = attention(query, key, value, document_mask(documents))
    torch.testing.assert_close(found, reference(query, key, value, allowed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_a_model_gives_the_same_loss_gradients_in_both_forms(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(module, "_PLAIN_TIME", 1024 if plain else 0)
    model = toy_gpt()
    ids = torch.randint(48, (2, 9), generator=torch.Generator().manual_seed(3))
    model(ids).square().mean().backward()
    gradient = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None])
    monkeypatch.setattr(module, "_PLAIN_TIME", 0 if plain else 1024)
    model.zero_grad()
    model(ids).square().mean().backward()
    other = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, other, atol=1e-7, rtol=1e-4)


def test_documents_in_one_sequence_are_answered_as_if_each_stood_alone() -> None:
    model = toy_gpt()
    first, second, third = torch.randint(48, (1, 4)), torch.randint(48, (1, 7)), torch.randint(48, (1, 1))
    together = torch.cat([first, second, third], dim=1)
    documents = torch.tensor([[0] * 4 + [1] * 7 + [2]])
    with torch.no_grad():
        packed = model(together, documents)
        alone = torch.cat([model(part) for part in (first, second, third)], dim=1)
        mixed = model(together)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    assert (mixed - alone).abs().max() > 0.1


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 5], [3, 9]])
@pytest.mark.parametrize("grad", [True, False])
def test_a_text_read_in_pieces_with_a_cache_gives_the_same_logits(pieces: list[int], grad: bool) -> None:
    model = toy_gpt()
    ids = torch.randint(48, (2, 12))
    with torch.no_grad():
        whole = model(ids)
    cache = model.new_cache(2, 12)
    with torch.set_grad_enabled(grad):
        parts = [model(part, cache=cache) for part in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1).detach(), whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 12


def test_a_cache_works_under_autocast_and_in_bfloat16() -> None:
    model = toy_gpt()
    ids = torch.randint(48, (1, 8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(1, 8)
        parts = [model(part, cache=cache) for part in ids.split([5, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=0.1, rtol=0.1)
    half = toy_gpt().bfloat16()
    with torch.no_grad():
        cache = half.new_cache(1, 8)
        assert cache.keys.dtype is torch.bfloat16
        assert half(ids, cache=cache).dtype is torch.bfloat16


def test_a_cache_is_used_even_by_a_model_in_training_mode_that_checkpoints() -> None:
    model = toy_gpt(gradient_checkpointing=True).train()
    ids = torch.randint(48, (1, 6))
    cache = model.new_cache(1, 6)
    parts = [model(part, cache=cache) for part in ids.split([4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)


def test_a_full_cache_and_documents_after_a_cached_text_are_refused() -> None:
    cache = KVCache(1, 1, 1, 4, 2, torch.device("cpu"), torch.float32)
    cache.append(0, torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    cache.advance(3)
    with pytest.raises(ModelError, match="outgrows its cache"):
        cache.append(0, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    model = GPT(toy_config())
    cache = model.new_cache(1, 8)
    model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)
    with pytest.raises(ModelError, match="document_ids"):
        model(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), cache)


def test_dropout_in_attention_drops_in_training_only() -> None:
    model = toy_gpt(dropout=0.5)
    ids = torch.randint(48, (1, 8))
    torch.testing.assert_close(model(ids), model(ids))
    model.train()
    assert (model(ids) - model(ids)).abs().max() > 0.01


@pytest.mark.parametrize("key_heads", [4, 2], ids=["heads", "grouped"])
def test_one_program_is_compiled_for_all_lengths(key_heads: int) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=counter)
    for batch, time in ((3, 5), (5, 7), (6, 12)):
        query, key = torch.randn(batch, 4, time, 8), torch.randn(batch, key_heads, time, 8)
        with torch.no_grad():
            found = compiled(query, key, key, causal=True)
        torch.testing.assert_close(found, attention(query, key, key, causal=True), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
