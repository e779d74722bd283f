"""Our DeepSeekMoE against `DeepseekV2ForCausalLM` and `DeepseekV3ForCausalLM` of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.models.deepseek_moe import DeepSeekMoE
from tests.parity.helpers import check_family, noisy

transformers = pytest.importorskip("transformers")

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}

SIZES: dict[str, Any] = {
    "vocab_size": 71,
    "hidden_size": 24,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}

V2: dict[str, dict[str, Any]] = {
    "lite": {"q_lora_rank": None, "topk_method": "greedy", "rms_norm_eps": 1e-5, "rope_parameters": YARN},
    "grouped": {
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.0,
        "tie_word_embeddings": True,
    },
}

V3: dict[str, dict[str, Any]] = {
    "grouped": {"n_group": 4, "topk_group": 2, "rope_parameters": YARN, "v_head_dim": 9},
    "one group": {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "q_lora_rank": None, "n_shared_experts": 1},
    "halves": {"n_group": 2, "topk_group": 1, "rope_interleave": False, "first_k_dense_replace": 0},
}


def v2(kind: str) -> Any:
    return noisy(transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**{**SIZES, **V2[kind]})), 0.1)


def v3(kind: str) -> Any:
    return noisy(transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**{**SIZES, **V3[kind]})), 0.1)


def in_file(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn their fused experts into the names of the file: a weight for each expert and projection."""
    found = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
        if match is None:
            found[name] = tensor
            continue
        for expert, weight in enumerate(tensor):
            parts = {"down": weight} if match[2] == "down" else dict(zip(("gate", "up"), weight.chunk(2), strict=True))
            found.update(
                {f"{match[1]}.{expert}.{part}_proj.weight": part_weight for part, part_weight in parts.items()}
            )
    return found


@pytest.mark.parametrize("kind", V2)
def test_v2_is_theirs(kind: str, tmp_path: Path) -> None:
    theirs = v2(kind)
    ours = check_family(theirs, {"input_ids": torch.randint(71, (2, 21))}, tmp_path, in_file=in_file)
    assert isinstance(ours, DeepSeekMoE) and ours.config.moe.scoring == "softmax"
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "deepseek_v2"


@pytest.mark.parametrize("kind", V3)
def test_v3_is_theirs(kind: str, tmp_path: Path) -> None:
    theirs = v3(kind)
    ours = check_family(theirs, {"input_ids": torch.randint(71, (2, 21))}, tmp_path, in_file=in_file)
    assert isinstance(ours, DeepSeekMoE) and ours.config.moe.correction_bias
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "deepseek_v3"


def test_the_bias_on_the_choice_stays_in_float32(tmp_path: Path) -> None:
    v3("grouped").save_pretrained(tmp_path)
    full, short = (DeepSeekMoE.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for name, value in short.named_buffers():
        if name.endswith("correction_bias"):
            assert torch.equal(value, full.get_buffer(name))
    assert short.token_embedding.weight.dtype == torch.bfloat16
    assert short(torch.randint(71, (1, 9))).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [lambda: v2("grouped"), lambda: v3("grouped")], ids=["v2", "v3"])
def test_greedy_text_is_theirs(make: Any, tmp_path: Path) -> None:
    theirs = make()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(71, (2, 5))
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    assert torch.equal(DeepSeekMoE.from_pretrained(tmp_path).generate(ids, max_new_tokens=20), wanted)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"attention_bias": True}, "attention_bias"),
        ({"topk_method": "noaux_tc"}, "noaux_tc"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
    ],
)
def test_what_deepseek_moe_can_not_do_is_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    v2("lite").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=named):
        DeepSeekMoE.from_pretrained(tmp_path)


def test_the_layer_that_predicts_a_second_token_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    theirs = v3("grouped")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "model.layers.61.eh_proj.weight": torch.zeros(2, 2)}, file, {"format": "pt"})
    DeepSeekMoE.from_pretrained(tmp_path)
    assert "not used" not in caplog.text
