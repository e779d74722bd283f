"""A tiny Conformer that streams, with random weights, and its bundle; for tests of streaming speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek.bundle import Bundle
from deepseek.data.spell_text import SpellText
from tests.toy_forms import bundle

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
RATE = 16_000
FEATURES = [{"name": "Resample", "target_sr": 8000}, {"name": "FeatureExtract", "type": "log_mel", "n_mels": 16}]


def speech_bundle(
    folder: Path, stages: list[Any] | None = None, *, mels: int = 16, left: int | None = 2, **encoder: Any
) -> Bundle:
    """Return a bundle of a Conformer of two layers with chunks of 4 frames."""
    small = {"num_layers": 2, "d_model": 32, "attention_heads": 2, "conv_kernel": 8, "conv_norm": "layer"}
    chunks = {"causal": True, "chunk_size": 4, "left_chunks": left}
    model = {
        "name": "Conformer",
        "encoder": {"num_mels": mels, **small, **chunks, **encoder},
        "decoder": {"vocab_size": len(ALPHABET) + 2},
    }
    road = FEATURES if stages is None else stages
    return bundle(folder, model, "speech_recognition", [SpellText(alphabet=ALPHABET), *road])


def spoken(*seconds: float, pause: float = 0.8, rate: int = RATE, seed: int = 0) -> Tensor:
    """Return bursts of loud noise of so many seconds, with quiet noise before, between and after them."""
    draw = torch.Generator().manual_seed(seed)
    parts = [0.001 * torch.randn(int(pause * rate), generator=draw)]
    for length in seconds:
        parts.append(0.2 * torch.randn(int(length * rate), generator=draw))
        parts.append(0.001 * torch.randn(int(pause * rate), generator=draw))
    return torch.cat(parts).clamp(-1, 1)


def cut(waveform: Tensor, seed: int, most: int = 6000) -> list[Tensor]:
    """Return a waveform in pieces of random lengths."""
    draw = torch.Generator().manual_seed(seed)
    pieces, place = [], 0
    while place < len(waveform):
        length = int(torch.randint(1, most, (1,), generator=draw))
        pieces.append(waveform[place : place + length])
        place += length
    return pieces


def pcm16(waveform: Tensor) -> bytes:
    """Return samples as bytes, little-endian."""
    return (waveform * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes()


def text_of(made: Bundle, waveform: Tensor, rate: int = RATE) -> str:
    """Return the text of a whole recording: the bundle's pipeline, `forward` and prefix-beam search."""
    from deepseek.tasks.build import build_task

    pipeline = made.pipeline()
    assert pipeline is not None
    sample = pipeline({"waveform": waveform, "sample_rate": rate, "text": "a"})
    task = build_task({"name": "speech_recognition", "decoding": "beam", "beam_size": 8})
    tokens = task.predict(made.model, sample["input_features"][None])[0]
    return "".join(ALPHABET[one - 1] for one in tokens if 1 <= one <= len(ALPHABET))
