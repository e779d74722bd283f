"""BERT by itself: published sizes, refused configs and inputs, and what padding must not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigError, ModelError
from deepseek.models import build
from deepseek.models.bert import BERT, BERTConfig, BertForSequenceClassification

SIZES = {"vocab_size": 31, "max_length": 12, "num_layers": 2, "d_model": 16, "num_heads": 2}


def toy(**changes: object) -> BERT:
    torch.manual_seed(0)
    return BERT(BERTConfig(**{**SIZES, **changes})).eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bert-base", 109_482_240), ("bert-large", 335_141_888), ("bert-base-chinese", 102_267_648)],
)
def test_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_padding_does_not_change_the_answer() -> None:
    model, ids = toy(head="classification"), torch.randint(1, 31, (2, 7))
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[:, 7:] = 0
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(padded, mask), model(ids), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(padded, mask.bool()), model(ids), atol=1e-6, rtol=1e-5)


def test_the_padding_token_starts_at_zero_and_stays_there() -> None:
    model = toy(dropout=0.0).train()
    model(torch.tensor([[0, 3, 0, 4]])).pooled.square().sum().backward()
    assert not model.token_embedding.weight[0].any()
    assert model.token_embedding.weight.grad is not None and not model.token_embedding.weight.grad[0].any()


def test_recomputed_blocks_give_equal_gradients_with_dropout() -> None:
    gradients = []
    for recompute in (False, True):
        model = toy(gradient_checkpointing=recompute, head="masked_lm").train()
        torch.manual_seed(3)
        model(torch.arange(8)[None]).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "nearest that fits: num_heads 2"),
        ({"pad_token_id": 31}, "nearest that fits: pad_token_id 30"),
        ({"activation": "swish"}, "activation"),
        ({"hidden_size": 16}, "hidden_size"),
    ],
)
def test_configs_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BERTConfig(**{**SIZES, **changes})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, "input_ids has the wrong shape"),
        ({"input_ids": torch.zeros(1, 13, dtype=torch.int64)}, "input_ids is too long"),
        ({"input_ids": torch.full((1, 3), 31)}, "input_ids has a token"),
        ({"input_ids": torch.zeros(1, 3)}, "input_ids must hold token numbers"),
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask has the wrong shape"),
        ({"token_type_ids": torch.full((2, 3), 2)}, "token_type_ids has a token"),
        ({"token_type_ids": torch.zeros(1, 3, dtype=torch.int64)}, "token_type_ids has the wrong shape"),
    ],
)
def test_inputs_that_do_not_fit(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        toy()(**{"input_ids": torch.zeros(2, 3, dtype=torch.int64), **inputs})


def test_the_classifier_by_its_other_name() -> None:
    model = BertForSequenceClassification(BERTConfig(**SIZES, num_labels=4))
    assert model.config.head == "classification"
    assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 4)
