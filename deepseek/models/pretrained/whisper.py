"""Whisper checkpoints (`WhisperForConditionalGeneration`) and our Whisper.

Their rates of dropout (embeddings and sums, attention) become our one, that of the sums; layer drop is training's and
is not read. Which tokens to suppress is in their generation_config.json, not in the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    activation = theirs.get("activation_function", "gelu")
    if activation != "gelu":
        raise ModelError("Whisper has no such activation", found=repr(activation), wanted="gelu")
    if theirs.get("tie_word_embeddings", True) is not True:
        raise ModelError("Whisper's output layer is its token embedding", found="tie_word_embeddings: false")
    eos = theirs.get("eos_token_id", 50256)
    eos = eos[0] if isinstance(eos, list) else eos
    pad = theirs.get("pad_token_id")
    return {
        "vocab_size": theirs.get("vocab_size", 51865),
        "num_mels": theirs.get("num_mel_bins", 80),
        "max_frames": 2 * theirs.get("max_source_positions", 1500),
        "max_length": theirs.get("max_target_positions", 448),
        "d_model": theirs.get("d_model", 384),
        "encoder_layers": theirs.get("encoder_layers", 4),
        "encoder_heads": theirs.get("encoder_attention_heads", 6),
        "encoder_d_ff": theirs.get("encoder_ffn_dim", 1536),
        "decoder_layers": theirs.get("decoder_layers", 4),
        "decoder_heads": theirs.get("decoder_attention_heads", 6),
        "decoder_d_ff": theirs.get("decoder_ffn_dim", 1536),
        "dropout": float(theirs.get("dropout", 0.0)),
        "pad_id": eos if pad is None else pad,
        "eos_id": eos,
        "start_id": theirs.get("decoder_start_token_id", 50257),
    }


def _config_to(config: Any) -> dict[str, Any]:
    if config.max_frames % 2:
        raise ModelError("Whisper's layout has an even number of frames", found=f"max_frames: {config.max_frames}")
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "vocab_size": config.vocab_size,
        "num_mel_bins": config.num_mels,
        "max_source_positions": config.max_frames // 2,
        "max_target_positions": config.max_length,
        "d_model": config.d_model,
        "encoder_layers": config.encoder_layers,
        "encoder_attention_heads": config.encoder_heads,
        "encoder_ffn_dim": config.encoder_d_ff,
        "decoder_layers": config.decoder_layers,
        "decoder_attention_heads": config.decoder_heads,
        "decoder_ffn_dim": config.decoder_d_ff,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": True,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.eos_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
    }


def _rules(config: Any) -> Sequence[Rule]:
    rules = [
        Rule("encoder.positions", "model.encoder.embed_positions.weight"),
        Rule("token_embedding.weight", "model.decoder.embed_tokens.weight"),
        Rule("position_embedding.weight", "model.decoder.embed_positions.weight"),
        Rule("encoder.norm.", "model.encoder.layer_norm."),
        Rule("norm.", "model.decoder.layer_norm."),
        Rule("lm_head.weight", "proj_out.weight"),
    ]
    for stack, parts in (
        ("encoder.blocks", {"attention": "self_attn"}),
        ("decoder", {"attention": "self_attn", "cross_attention": "encoder_attn"}),
    ):
        ours, theirs = f"{stack}.{{}}.", f"model.{stack.partition('.')[0]}.layers.{{}}."
        for part, name in parts.items():
            rules.append(Rule(f"{ours}{part}_norm.", f"{theirs}{name}_layer_norm."))
            for projection in ("query", "key", "value", "out"):
                short = "out" if projection == "out" else projection[0]
                rules.append(Rule(f"{ours}{part}.{projection}.", f"{theirs}{name}.{short}_proj."))
        rules += [
            Rule(f"{ours}feed_forward_norm.", f"{theirs}final_layer_norm."),
            Rule(f"{ours}feed_forward.up.", f"{theirs}fc1."),
            Rule(f"{ours}feed_forward.down.", f"{theirs}fc2."),
        ]
    rules += [Rule(f"encoder.{name}.", f"model.encoder.{name}.") for name in ("conv1", "conv2")]
    return rules


FAMILY = Family(template="Whisper", config_from=_config_from, config_to=_config_to, rules=_rules, base_prefix="model.")
"""How Whisper checkpoints map to Whisper."""
