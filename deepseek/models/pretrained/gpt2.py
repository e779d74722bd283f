"""GPT-2 checkpoints (`GPT2LMHeadModel`, `GPT2Model`) and our GPT.

Their `Conv1D` holds a matrix the other way round than a linear layer. Their three rates of dropout become our one, that
of the attention; ours has none on the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    activation = theirs.get("activation_function", "gelu_new")
    if activation not in _TANH_GELU:
        raise ModelError("GPT has no such activation", found=repr(activation), wanted=" or ".join(_TANH_GELU))
    for setting, wanted in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if theirs.get(setting, wanted) is not wanted:
            raise ModelError(f"GPT can't do what '{setting}' in config.json asks", found=theirs[setting], wanted=wanted)
    return {
        "vocab_size": theirs.get("vocab_size", 50257),
        "max_length": theirs.get("n_positions", 1024),
        "num_layers": theirs.get("n_layer", 12),
        "d_model": theirs.get("n_embd", 768),
        "num_heads": theirs.get("n_head", 12),
        "d_ff": theirs.get("n_inner"),
        "dropout": theirs.get("attn_pdrop", 0.1),
        "norm_eps": theirs.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
    }


def _config_to(config: Any) -> dict[str, Any]:
    if not config.bias:
        raise ModelError("GPT-2 has biases everywhere", found="bias: false", fix="ds.save(model, path) writes a bundle")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_layer": config.num_layers,
        "n_embd": config.d_model,
        "n_head": config.heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new",
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _rules(config: Any) -> Sequence[Rule]:
    block, layer = "blocks.{}.", "transformer.h.{}."
    matrices = {
        "attention.qkv.": "attn.c_attn.",
        "attention.out.": "attn.c_proj.",
        "feed_forward.up.": "mlp.c_fc.",
        "feed_forward.down.": "mlp.c_proj.",
    }
    return (
        Rule("token_embedding.weight", "transformer.wte.weight"),
        Rule("position_embedding.weight", "transformer.wpe.weight"),
        *(Rule(f"{block}{ours}weight", f"{layer}{theirs}weight", "transpose") for ours, theirs in matrices.items()),
        *(Rule(f"{block}{ours}bias", f"{layer}{theirs}bias") for ours, theirs in matrices.items()),
        Rule(f"{block}attention_norm.", f"{layer}ln_1."),
        Rule(f"{block}feed_forward_norm.", f"{layer}ln_2."),
        Rule("norm.", "transformer.ln_f."),
        Rule("lm_head.weight", "lm_head.weight"),
    )


FAMILY = Family(
    template="GPT",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    ignored=(r"\.attn\.(masked_)?bias$",),
    base_prefix="transformer.",
)
"""How GPT-2 checkpoints map to GPT."""
