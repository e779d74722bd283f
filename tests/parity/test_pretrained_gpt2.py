"""GPT-2 checkpoints: `GPT2LMHeadModel` of transformers to our GPT and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.models.gpt import GPT
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")


def theirs(seed: int, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 53, "n_positions": 20, "n_embd": 24, "n_layer": 2, "n_head": 3}
    config = transformers.GPT2Config(**{**sizes, "bos_token_id": None, "eos_token_id": None, **changes})
    return noisy(transformers.GPT2LMHeadModel(config), 0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 40, "n_head": 1, "n_layer": 3},
        {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3, "activation_function": "gelu_pytorch_tanh"},
    ],
    ids=["plain", "sizes", "untied"],
)
def test_there_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = check_family(theirs(len(changes), **changes), {"input_ids": torch.randint(53, (2, 17))}, tmp_path)
    assert isinstance(ours, GPT)


def test_a_checkpoint_of_the_bare_model_lacks_the_prefix(tmp_path: Path) -> None:
    model, ids = theirs(3), torch.randint(53, (2, 9))
    model.transformer.save_pretrained(tmp_path)
    torch.testing.assert_close(GPT.from_pretrained(tmp_path)(ids), model(ids).logits, atol=1e-5, rtol=1e-5)
