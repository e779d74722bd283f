"""T5 checkpoints (`T5ForConditionalGeneration`: T5, T5 1.1, flan-t5) and our T5.

Their config says in two ways that the output layer is its own: `tie_word_embeddings: false` in the files of the hub,
`scale_decoder_outputs: false` in what newer versions of transformers write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule

_FEED_FORWARD = {"relu": "relu", "gated-gelu": "gated_gelu"}


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    feed_forward = theirs.get("feed_forward_proj", "relu")
    if feed_forward not in _FEED_FORWARD:
        raise ModelError(
            "T5 has no such feed-forward layer", found=repr(feed_forward), wanted=" or ".join(_FEED_FORWARD)
        )
    layers = theirs.get("num_layers", 6)
    decoder_layers = theirs.get("num_decoder_layers")
    eos = theirs.get("eos_token_id", 1)
    pad = theirs.get("pad_token_id") or 0
    start = theirs.get("decoder_start_token_id")
    own_output = theirs.get("tie_word_embeddings") is False or theirs.get("scale_decoder_outputs") is False
    return {
        "vocab_size": theirs.get("vocab_size", 32128),
        "encoder_layers": layers,
        "decoder_layers": layers if decoder_layers is None else decoder_layers,
        "d_model": theirs.get("d_model", 512),
        "num_heads": theirs.get("num_heads", 8),
        "head_dim": theirs.get("d_kv", 64),
        "d_ff": theirs.get("d_ff", 2048),
        "feed_forward": _FEED_FORWARD[feed_forward],
        "tie_embeddings": not own_output,
        "num_buckets": theirs.get("relative_attention_num_buckets", 32),
        "max_distance": theirs.get("relative_attention_max_distance", 128),
        "dropout": float(theirs.get("dropout_rate", 0.1)),
        "norm_eps": theirs.get("layer_norm_epsilon", 1e-6),
        "pad_id": pad,
        "eos_id": eos[0] if isinstance(eos, list) else eos,
        "start_id": pad if start is None else start,
    }


def _config_to(config: Any) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "feed_forward_proj": {ours: theirs for theirs, ours in _FEED_FORWARD.items()}[config.feed_forward],
        "tie_word_embeddings": config.tie_embeddings,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
    }


def _rules(config: Any) -> Sequence[Rule]:
    gated = config.feed_forward == "gated_gelu"
    inner = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    projections = {"query": "q", "key": "k", "value": "v", "out": "o"}
    rules = [Rule("token_embedding.weight", "shared.weight"), Rule("lm_head.weight", "lm_head.weight")]
    for stack, parts in (
        ("encoder", {"attention": "SelfAttention"}),
        ("decoder", {"attention": "SelfAttention", "cross_attention": "EncDecAttention"}),
    ):
        ours, theirs = f"{stack}.{{}}.", f"{stack}.block.{{}}.layer."
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias."
        rules += [Rule(f"{stack}_bias.embedding.", table), Rule(f"{stack}_norm.", f"{stack}.final_layer_norm.")]
        for index, (part, name) in enumerate(parts.items()):
            rules.append(Rule(f"{ours}{part}_norm.", f"{theirs}{index}.layer_norm."))
            rules += [Rule(f"{ours}{part}.{a}.", f"{theirs}{index}.{name}.{b}.") for a, b in projections.items()]
        last = f"{theirs}{len(parts)}."
        rules.append(Rule(f"{ours}feed_forward_norm.", f"{last}layer_norm."))
        rules += [Rule(f"{ours}feed_forward.{a}.", f"{last}DenseReluDense.{b}.") for a, b in inner.items()]
    return rules


FAMILY = Family(
    template="T5",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    ignored=(
        r"^(encoder|decoder)\.embed_tokens\.weight$",  # the shared table again
        r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",  # in old files, never used
    ),
)
"""How T5 checkpoints map to T5."""
