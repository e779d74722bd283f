"""Tiny bundles of every task with their pipelines, for tests of natural inputs and answers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepseek as ds
from deepseek.bundle import Bundle
from deepseek.data import Tokenizer
from deepseek.data.pipeline.pipeline import Pipeline
from deepseek.models.factory import build

WORDS = "the room was near a street and we had our breakfast there it was lovely dirty".split()
LABELS = ("ant", "bee", "cat")

_SMALL = {"num_layers": 1, "d_model": 16, "num_heads": 2}
_TEXTS = {"vocab_size": 1, "max_length": 24, **_SMALL}
TOKENIZE = {"name": "Tokenize", "tokenizer": "-", "max_length": 20}

MODELS: dict[str, dict[str, Any]] = {
    "bert": {"name": "BERT", "head": "classification", "num_labels": 3, **_TEXTS},
    "bert_mlm": {"name": "BERT", "head": "masked_lm", **_TEXTS},
    "clip": {
        "name": "CLIP",
        "text": _TEXTS,
        "image": {"image_size": 16, "patch_size": 8, **_SMALL},
        "projection_dim": 8,
    },
    "clip_sound": {
        "name": "CLIP",
        "text": _TEXTS,
        "image": {"image_size": 16, "patch_size": 8, **_SMALL},
        "audio": {"num_mels": 16, "max_frames": 100, **_SMALL},
        "projection_dim": 8,
    },
    "conformer": {
        "name": "Conformer",
        "encoder": {"num_layers": 1, "d_model": 16, "attention_heads": 2, "conv_kernel": 5, "num_mels": 16},
        "decoder": {"vocab_size": 10},
    },
    "dit": {"name": "DiT", "latent_size": 8, "num_channels": 3, "num_classes": 3, **_SMALL},
    "gpt": {"name": "GPT", "vocab_size": 50, "max_length": 32, **_SMALL},
    "mlp": {"name": "MLP", "input_shape": [4], "hidden_sizes": [8], "num_labels": 3},
    "resnet": {
        "name": "ResNet",
        "block": "basic",
        "depths": [1],
        "hidden_sizes": [8],
        "stem_size": 8,
        "num_labels": 3,
        "image_size": 32,
    },
    "schnet": {"name": "SchNet", "max_atomic_number": 20, "d_model": 16, "num_filters": 12, "num_interactions": 1},
    "t5": {
        "name": "T5",
        "vocab_size": 1,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "d_model": 16,
        "num_heads": 2,
        "head_dim": 8,
        "d_ff": 16,
    },
    "unet": {"name": "UNetPlusPlus", "channels": [4, 8], "num_channels": 3, "num_labels": 3, "image_size": 32},
    "unet3d": {
        "name": "UNetPlusPlus",
        "dims": 3,
        "num_channels": 1,
        "num_labels": 3,
        "channels": [4, 6],
        "norm": "instance",
        "image_size": 8,
    },
    "whisper": {
        "name": "Whisper",
        "vocab_size": 1,
        "num_mels": 16,
        "max_frames": 100,
        "max_length": 16,
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_heads": 2,
        "encoder_d_ff": 16,
        "decoder_layers": 1,
        "decoder_heads": 2,
        "decoder_d_ff": 16,
        "pad_id": 0,
        "eos_id": 1,
        "start_id": 2,
    },
    "xl": {"name": "TransformerXL", "vocab_size": 50, **_SMALL},
    "yolo": {"name": "YOLOv5", "image_size": 64, "depth_multiple": 0.1, "width_multiple": 0.05, "num_labels": 3},
}
"""Configs by a short name; `vocab_size` 1 becomes the tokenizer's."""


def tokenizer() -> Tokenizer:
    """A tokenizer with a mask token."""
    return Tokenizer.train([" ".join(WORDS)] * 20, 300, allow_smaller=True).with_special_tokens(["[MASK]"])


def bundle(
    folder: Path,
    model: dict[str, Any],
    task: str,
    stages: list[Any] | None = None,
    *,
    labels: tuple[str, ...] = LABELS,
    **settings: Any,
) -> Bundle:
    """Write and load a bundle with random weights; stages with the tokenizer "-" get the bundle's own."""
    torch.manual_seed(0)
    written = [stage if isinstance(stage, dict) else Pipeline([stage]).to_config()[0] for stage in stages or []]
    kept = tokenizer() if any(stage.get("tokenizer") == "-" for stage in written) else None
    values = dict(model)
    if kept is not None and values.get("vocab_size") == 1:
        values["vocab_size"] = kept.vocab_size
    if kept is not None and "text" in values:
        values["text"] = {**values["text"], "vocab_size": kept.vocab_size}
    net = build(values).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # so that no two answers are alike
    ds.save(net, folder, tokenizer=kept, task=task, task_settings=settings, labels=labels, pipeline=written)
    return ds.load(folder, device="cpu")


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray[Any, Any]:
    """Noise with a bright square, uint8 (height, width, 3), or (height, width) of one channel."""
    draw = np.random.default_rng(seed)
    levels = draw.integers(0, 90, (height, width, channels)).astype(np.uint8)
    levels[height // 4 : height // 2, width // 4 : width // 2] = 230
    return levels if channels > 1 else levels[..., 0]


def file_bytes(levels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(levels).save(out, kind, **options)
    return out.getvalue()


def b64(data: bytes) -> dict[str, str]:
    """Bytes as they stand in JSON."""
    return {"b64": base64.b64encode(data).decode("ascii")}
