"""Our BERT against the BERT classes of transformers, each head, with and without padding and second sentences."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek import nlp
from deepseek.models.bert import BERT, BertForSequenceClassification
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")


def theirs(kind: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 43,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 20,
    }
    return noisy(getattr(transformers, kind)(transformers.BertConfig(**{**sizes, **changes})), 0.1)


def inputs(time: int = 13) -> dict[str, Tensor]:
    torch.manual_seed(5)
    mask = torch.ones(3, time, dtype=torch.int64)
    mask[1, time // 2 + 1 :] = 0
    mask[2, 1 + time // 3 : time // 2] = 0  # and a gap
    return {
        "input_ids": torch.randint(43, (3, time)),  # 0, the padding token, among them
        "attention_mask": mask,
        "token_type_ids": torch.randint(2, (3, time)),
    }


def features(output: Any) -> tuple[Tensor, Tensor]:
    return output.last_hidden_state, output.pooler_output


def test_features_there_and_back(tmp_path: Path) -> None:
    ours = check_family(theirs("BertModel"), inputs(), tmp_path, pick=features)
    assert isinstance(ours, BERT) and ours.config.head == "none"


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu_new", "pad_token_id": 7}], ids=str)
def test_masked_tokens_there_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = check_family(theirs("BertForMaskedLM", **changes), inputs(20), tmp_path)
    assert ours.config.head == "masked_lm"


def test_classification_there_and_back(tmp_path: Path) -> None:
    changes = {"num_labels": 5, "type_vocab_size": 3, "layer_norm_eps": 1e-5, "num_hidden_layers": 3}
    ours = check_family(theirs("BertForSequenceClassification", **changes), inputs(1), tmp_path)
    assert ours.config.num_labels == 5


def test_ids_alone_are_enough(tmp_path: Path) -> None:
    check_family(theirs("BertForMaskedLM"), {"input_ids": inputs()["input_ids"]}, tmp_path)


def test_a_classifier_from_the_checkpoint_of_another_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = theirs("BertForPreTraining")
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ours = nlp.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=3, gradient_checkpointing=True)
    assert isinstance(ours, BertForSequenceClassification)
    assert ours.config.gradient_checkpointing and ours.config.head == "classification"
    assert "classifier.weight (not in the checkpoint)" in caplog.text
    assert "cls.seq_relationship.weight" in caplog.text
    assert ours(**inputs()).shape == (3, 3)
    assert float(ours.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.3)
    assert not ours.classifier.bias.any()
    bare = BERT.from_pretrained(tmp_path, head="none")
    torch.testing.assert_close(bare(**inputs()), features(model.bert(**inputs())), atol=1e-5, rtol=1e-5)


def test_a_head_of_another_size_is_started_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs("BertForSequenceClassification", num_labels=5).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ours = nlp.from_pretrained(tmp_path, num_labels=3)
    assert "classifier.weight ((5, 24) in the checkpoint, (3, 24) here)" in caplog.text
    assert "pooler" not in caplog.text
    assert ours(**inputs()).shape == (3, 3)


def test_features_from_a_checkpoint_without_a_pooler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = theirs("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ours = BERT.from_pretrained(tmp_path, head="none")
    assert "pooler.weight (not in the checkpoint)" in caplog.text
    wanted = model.bert(**inputs()).last_hidden_state
    torch.testing.assert_close(ours(**inputs()).last_hidden_state, wanted, atol=1e-5, rtol=1e-5)
