"""The LSTM: against torch's own, its two ways to run, texts in parts, documents, classification, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError, ModelError
from deepseek.models import build
from deepseek.models.lstm import LSTM, LSTMConfig
from deepseek.nn.lstm_layer import LSTMLayer
from deepseek.tasks.language_modeling import LanguageModeling

VOCAB = 30


def toy(**changes: object) -> LSTM:
    torch.manual_seed(1)
    return LSTM(LSTMConfig(**{"vocab_size": VOCAB, "embedding_dim": 6, "hidden_size": 8, "num_layers": 2, **changes}))


def ids(batch: int = 2, time: int = 11) -> Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(time))


def in_steps(layer: LSTMLayer) -> LSTMLayer:
    """Return the layer with its linear layers swapped for others of the same weights, as compression does."""

    class Swapped(nn.Linear):
        pass

    layer.input.__class__ = layer.recurrent.__class__ = Swapped
    return layer


def test_logits_and_gradients_are_those_of_torchs_lstm() -> None:
    model, theirs = toy(), nn.LSTM(6, 8, num_layers=2, batch_first=True)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            getattr(theirs, f"weight_ih_l{number}").copy_(layer.input.weight)
            getattr(theirs, f"weight_hh_l{number}").copy_(layer.recurrent.weight)
            getattr(theirs, f"bias_ih_l{number}").copy_(layer.input.bias)
            getattr(theirs, f"bias_hh_l{number}").zero_()
    found, wanted = model(ids()), model.lm_head(theirs(model.token_embedding(ids()))[0])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    found.square().mean().backward()
    ours = [layer.recurrent.weight.grad for layer in model.layers]
    model.lm_head(theirs(model.token_embedding(ids()))[0]).square().mean().backward()
    for number, gradient in enumerate(ours):
        torch.testing.assert_close(gradient, getattr(theirs, f"weight_hh_l{number}").grad, atol=1e-6, rtol=1e-4)


def test_step_by_step_equals_the_fused_kernel() -> None:
    layer, x, state = LSTMLayer(5, 4), torch.randn(3, 7, 5), (torch.randn(3, 4), torch.randn(3, 4))
    fused, after = layer(x, state)
    stepped, last = in_steps(layer)(x, state)
    torch.testing.assert_close(stepped, fused, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(last, after, atol=1e-6, rtol=1e-5)


def test_a_text_goes_on_where_it_stopped() -> None:
    model = toy().eval()
    whole, cache = model(ids()), model.new_cache(2)
    parts = torch.cat([model(ids()[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 11))], dim=1)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    assert cache.length == 11


def test_a_detached_cache_carries_the_state_and_no_gradient() -> None:
    model = toy()
    cache = model.new_cache(2)
    model(ids(), cache=cache)
    states = [part for state in cache.states for part in state]
    cache.detach()
    kept = [part for state in cache.states for part in state]
    assert all(part.requires_grad for part in states) and not any(part.requires_grad for part in kept)
    torch.testing.assert_close(kept, [part.detach() for part in states])
    model(ids(), cache=cache).sum().backward()  # and does not reach into the first part, already gone


def test_documents_do_not_hear_each_other() -> None:
    model, text = toy().eval(), ids(1, 9)
    found = model(text, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]]))
    alone = torch.cat([model(text[:, a:b]) for a, b in ((0, 3), (3, 7), (7, 9))], dim=1)
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-5)


def test_generation_is_that_of_the_whole_text_again_and_again() -> None:
    model, text = toy().eval(), ids(2, 5)
    found = model.generate(text, max_new_tokens=6)
    for _ in range(6):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, text)


def test_a_classifier_reads_the_last_step_that_counts() -> None:
    model, text = toy(num_labels=3).eval(), ids(3, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    found = model(text, attention_mask=mask)
    assert found.shape == (3, 3)
    for row, length in enumerate((8, 5, 1)):
        torch.testing.assert_close(found[row : row + 1], model(text[row : row + 1, :length]), atol=1e-6, rtol=1e-5)


def test_it_learns_a_text_by_the_language_modeling_task() -> None:
    model, task = toy(hidden_size=24), LanguageModeling()
    text = ids(4, 13)
    batch = {"input_ids": text[:, :-1], "labels": text[:, 1:]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
        losses.append(loss.sum.item() / loss.count)
    assert losses[-1] < 0.3 * losses[0]


def test_weights_start_as_documented() -> None:
    model = toy(hidden_size=64, embedding_dim=None, tie_embeddings=True)
    assert model.lm_head.weight is model.token_embedding.weight
    assert model.token_embedding.weight.abs().max() <= 0.1
    for layer in model.layers:
        assert layer.recurrent.weight.abs().max() <= 64**-0.5
        assert layer.input.bias.unflatten(0, (4, 64)).sum(1).tolist() == [0, 64, 0, 0]


def test_the_small_size_is_the_papers() -> None:
    """Zaremba et al. 2014: two layers of 200 and 10,000 words."""
    with torch.device("meta"):
        model = build("lstm-small")
    words = 2 * 10_000 * 200 + 10_000
    assert sum(p.numel() for p in model.parameters()) == words + 2 * (4 * 200 * (200 + 200) + 4 * 200)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tie_embeddings": True, "embedding_dim": 5, "hidden_size": 6}, "nearest that fits: embedding_dim 6"),
        ({"tie_embeddings": True, "num_labels": 2}, "nearest that fits: tie_embeddings false"),
        ({"hidden": 4}, "did you mean 'hidden_size'"),
        ({"num_layers": 0}, "greater than or equal to 1"),
    ],
)
def test_sizes_that_make_no_model_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LSTMConfig(**values)


def test_wrong_inputs_are_named() -> None:
    model = toy()
    for inputs, words in (
        ({"input_ids": ids()[0]}, "input_ids"),
        ({"input_ids": ids() + VOCAB}, "does not know"),
        ({"input_ids": ids(), "attention_mask": torch.ones(2, 3)}, "attention_mask"),
        ({"input_ids": ids(), "document_ids": torch.zeros(2, 3)}, "document_ids"),
    ):
        with pytest.raises(ModelError, match=words):
            model(**inputs)
    cache = model.new_cache(2)
    model(ids(), cache=cache)
    with pytest.raises(ModelError, match="can't follow a text"):
        model(ids(), torch.zeros(2, 11), cache)
