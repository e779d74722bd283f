"""BERT checkpoints (`BertModel`, `BertForMaskedLM`, `BertForSequenceClassification`) and our BERT.

The head is chosen by `architectures` in config.json; checkpoints of other heads are read without theirs. Queries, keys
and values are three layers there and one here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.errors import ModelError
from deepseek.models.pretrained.rules import Family, Rule

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_ARCHITECTURES = {
    "none": "BertModel",
    "masked_lm": "BertForMaskedLM",
    "classification": "BertForSequenceClassification",
}


def _config_from(theirs: Mapping[str, Any]) -> dict[str, Any]:
    activation = theirs.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ModelError("BERT has no such activation", found=repr(activation), wanted=" or ".join(_ACTIVATIONS))
    if theirs.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            "BERT has no such positions", found=repr(theirs["position_embedding_type"]), wanted="'absolute'"
        )
    for setting, wanted in (("is_decoder", False), ("add_cross_attention", False), ("tie_word_embeddings", True)):
        if theirs.get(setting, wanted) is not wanted:
            raise ModelError(
                f"BERT can't do what '{setting}' in config.json asks", found=theirs[setting], wanted=wanted
            )
    heads = {name: head for head, name in _ARCHITECTURES.items()}
    architecture = (theirs.get("architectures") or ["BertModel"])[0]
    labels = theirs.get("num_labels") or len(theirs.get("id2label") or {}) or 2
    return {
        "vocab_size": theirs.get("vocab_size", 30522),
        "max_length": theirs.get("max_position_embeddings", 512),
        "num_layers": theirs.get("num_hidden_layers", 12),
        "d_model": theirs.get("hidden_size", 768),
        "num_heads": theirs.get("num_attention_heads", 12),
        "d_ff": theirs.get("intermediate_size", 3072),
        "token_types": theirs.get("type_vocab_size", 2),
        "pad_token_id": theirs.get("pad_token_id", 0),
        "activation": _ACTIVATIONS[activation],
        "dropout": theirs.get("hidden_dropout_prob", 0.1),
        "attention_dropout": theirs.get("attention_probs_dropout_prob", 0.1),
        "classifier_dropout": theirs.get("classifier_dropout"),
        "norm_eps": theirs.get("layer_norm_eps", 1e-12),
        "head": heads.get(architecture, "none"),
        "num_labels": labels,
    }


def _config_to(config: Any) -> dict[str, Any]:
    labels = [f"LABEL_{index}" for index in range(config.num_labels)]
    return {
        "model_type": "bert",
        "architectures": [_ARCHITECTURES[config.head]],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff or 4 * config.d_model,
        "type_vocab_size": config.token_types,
        "pad_token_id": config.pad_token_id,
        "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.classifier_dropout,
        "layer_norm_eps": config.norm_eps,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _rules(config: Any) -> Sequence[Rule]:
    base = "" if config.head == "none" else "bert."
    layer = base + "encoder.layer.{}."
    attention = layer + "attention.self."
    return (
        Rule("token_embedding.weight", f"{base}embeddings.word_embeddings.weight"),
        Rule("position_embedding.weight", f"{base}embeddings.position_embeddings.weight"),
        Rule("token_type_embedding.weight", f"{base}embeddings.token_type_embeddings.weight"),
        Rule("embedding_norm.", f"{base}embeddings.LayerNorm."),
        Rule("blocks.{}.attention.qkv.", (f"{attention}query.", f"{attention}key.", f"{attention}value."), "concat"),
        Rule("blocks.{}.attention.out.", layer + "attention.output.dense."),
        Rule("blocks.{}.attention_norm.", layer + "attention.output.LayerNorm."),
        Rule("blocks.{}.feed_forward.up.", layer + "intermediate.dense."),
        Rule("blocks.{}.feed_forward.down.", layer + "output.dense."),
        Rule("blocks.{}.feed_forward_norm.", layer + "output.LayerNorm."),
        Rule("pooler.", f"{base}pooler.dense."),
        Rule("classifier.", "classifier."),
        Rule("head_dense.", "cls.predictions.transform.dense."),
        Rule("head_norm.", "cls.predictions.transform.LayerNorm."),
        Rule("lm_head.weight", "cls.predictions.decoder.weight"),
        Rule("lm_head.bias", "cls.predictions.bias"),
    )


FAMILY = Family(
    template="BERT",
    config_from=_config_from,
    config_to=_config_to,
    rules=_rules,
    ignored=(r"embeddings\.position_ids$", r"^cls\.predictions\.decoder\.bias$"),
    base_prefix="bert.",
    heads=("pooler.", "classifier.", "head_dense.", "head_norm.", "lm_head."),
)
"""How BERT checkpoints map to BERT."""
