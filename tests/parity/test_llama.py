"""Our Llama against `LlamaForCausalLM` and `Qwen2ForCausalLM` of transformers: weights, logits, gradients, text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.errors import ModelError
from deepseek.models.llama import Llama, LlamaConfig
from deepseek.nn.rotary import rotary_frequencies
from deepseek.nn.rotary_scaling import RotaryScaling
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0},
}


def sizes(seed: int) -> dict[str, Any]:
    """Return random small sizes, a different set for each seed."""
    draw = random.Random(seed)
    kv_heads, head_dim = draw.choice([1, 2, 3]), draw.choice([4, 6, 8])
    heads = kv_heads * draw.choice([1, 2])
    return {
        "vocab_size": draw.randint(50, 99),
        "hidden_size": heads * head_dim,
        "intermediate_size": draw.randint(20, 60),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def ids_for(model: Any, batch: int = 2, time: int = 19) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (batch, time))


@pytest.mark.parametrize(("seed", "scaling"), list(enumerate(SCALINGS)))
def test_llama_is_theirs(seed: int, scaling: str, tmp_path: Path) -> None:
    rope = {**SCALINGS[scaling], "rope_theta": 10000.0 * (seed + 1)}
    changes: dict[str, Any] = {"head_dim": 10} if seed == 2 else {}
    biases = {"attention_bias": seed == 1, "mlp_bias": seed == 3}
    config = transformers.LlamaConfig(**sizes(seed), **changes, **biases, rope_parameters=rope)
    theirs = noisy(transformers.LlamaForCausalLM(config))
    ours = check_family(theirs, {"input_ids": ids_for(theirs)}, tmp_path)
    assert isinstance(ours, Llama) and ours.config.rope_base == rope["rope_theta"]
    assert (ours.config.rope_scaling is None) == (scaling == "default")


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_is_theirs(tied: bool, tmp_path: Path) -> None:
    theirs = noisy(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes(7 + tied), tie_word_embeddings=tied)))
    ours = check_family(theirs, {"input_ids": ids_for(theirs)}, tmp_path)
    assert isinstance(ours, Llama) and ours.config.qkv_bias and ours.config.tie_embeddings == tied
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "qwen2"


@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_is_theirs(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    theirs = noisy(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(seed))), 0.3)
    theirs.save_pretrained(tmp_path)
    ids = ids_for(theirs, batch=2, time=5)
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    assert torch.equal(Llama.from_pretrained(tmp_path).generate(ids, max_new_tokens=20), wanted)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize("dim", [16, 64])
def test_scaled_frequencies_are_theirs(kind: str, dim: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {**SCALINGS[kind], "rope_theta": 500000.0, "original_max_position_embeddings": 4096}
    config = transformers.LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, rope_parameters=rope)
    wanted, amplitude = ROPE_INIT_FUNCTIONS[kind](config)
    length = {} if kind == "linear" else {"original_length": 4096}
    bounds = {"beta_fast": 8.0} if kind == "yarn" else {}
    scaling = RotaryScaling.model_validate({"type": kind, "factor": rope["factor"], **length, **bounds})
    found = rotary_frequencies(dim, 500000.0, torch.device("cpu"), scaling)
    torch.testing.assert_close(found, wanted, atol=0, rtol=1e-5)
    assert scaling.amplitude == pytest.approx(amplitude)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding"),
    ],
)
def test_what_llama_can_not_do_is_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(0)))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=named):
        Llama.from_pretrained(tmp_path)


def test_a_layout_that_can_not_hold_the_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=11, num_layers=1, d_model=8, num_heads=2, out_bias=True)
    with pytest.raises(ModelError, match="biases"):
        Llama(config).save_pretrained(tmp_path)
