"""A GPT of a few thousand weights, batches for it, and text with structure, for tests of the core."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor

from deepseek.models.gpt import GPT, GPTConfig

Batch = dict[str, Tensor]


def toy_config(**changes: object) -> GPTConfig:
    """Return a config of 2 layers, width 16, 48 tokens, 24 positions."""
    sizes = {"vocab_size": 48, "max_length": 24, "num_layers": 2, "d_model": 16, "num_heads": 2}
    return GPTConfig(**{**sizes, **changes})


def toy_gpt(**changes: object) -> GPT:
    """Return a GPT whose weights are always the same, larger than at initialisation so that its answers differ."""
    torch.manual_seed(7)
    model = GPT(toy_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def toy_batches(count: int, batch_size: int = 4, time: int = 12, vocab_size: int = 48, seed: int = 0) -> list[Batch]:
    """Return batches in which a token is followed by its double plus one, mostly: something to learn."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(vocab_size, (batch_size, time + 1), generator=generator)
        for position in range(1, time + 1):
            keep = torch.rand(batch_size, generator=generator) < 0.1
            ids[:, position] = torch.where(keep, ids[:, position], (2 * ids[:, position - 1] + 1) % vocab_size)
        batches.append({"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()})
    return batches


def write_text(path: Path, documents: int = 120, seed: int = 0) -> Path:
    """Write JSONL documents of made-up sentences."""
    chance = random.Random(seed)
    animals, verbs, places = (
        ["the cat", "a dog", "one bird"],
        ["sleeps", "walks", "sings"],
        ["here", "at home", "there"],
    )
    lines = []
    for _ in range(documents):
        sentences = (" ".join(map(chance.choice, (animals, verbs, places))) + "." for _ in range(chance.randint(2, 9)))
        lines.append(json.dumps({"text": " ".join(sentences)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
