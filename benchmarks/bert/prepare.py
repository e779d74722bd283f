"""Writes the BERT workload: real text in rows of tokens with some hidden, and seeded initial weights.

15% of the tokens of a row are hidden: 80% of them by the mask token, 10% by any token, 10% stay (Devlin et al. 2018,
arXiv:1810.04805, section 3.1). Not here: reading the files (`benchmarks.bert.workload`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.bert.workload import IGNORE, Workload, random_generator
from deepseek.data.tokenizer import Tokenizer

PAD, CLS, SEP, MASK = 0, 1, 2, 3
FIRST = 4
"""The number of the first token that stands for text."""
_TOKENIZER_VOCABULARY = 8192


def write_workload(folder: Path, texts: Iterable[str], shape: Workload | None = None) -> Workload:
    """Write batches and weights for `shape` (BERT-base by default) into `folder`. Too few texts end it."""
    workload = replace(shape or Workload(folder), folder=folder)
    documents = list(texts)
    words = min(_TOKENIZER_VOCABULARY, workload.vocab_size - FIRST)
    tokenizer = Tokenizer.train(documents, vocab_size=words, allow_smaller=True)
    wanted = workload.steps * workload.batch_size
    ids = _rows((tokenizer.encode(document) for document in documents), wanted, workload.length)
    mask = (ids != PAD).long()
    inputs, labels = hide(ids, workload, tokenizer.vocab_size)
    fields = {"input_ids": inputs, "attention_mask": mask, "labels": labels}
    save_file(fields, folder / "batches.safetensors")
    write_weights(workload)
    workload.save()
    return workload


def hide(ids: Tensor, workload: Workload, words: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (ids with some tokens hidden, labels): per row the share of its text tokens, rounded, at least one."""
    generator = random_generator(seed)
    chance = torch.rand(ids.shape, generator=generator).masked_fill(ids < FIRST, 2.0)
    counts = ((ids >= FIRST).sum(1, keepdim=True) * workload.masked_share).round().clamp(1, workload.places)
    hidden = (chance.argsort(1).argsort(1) < counts) & (ids >= FIRST)
    labels = ids.masked_fill(~hidden, IGNORE)
    kind = torch.rand(ids.shape, generator=generator)
    other = torch.randint(FIRST, FIRST + words, ids.shape, generator=generator)
    inputs = torch.where(hidden & (kind < 0.8), MASK, torch.where(hidden & (kind < 0.9), other, ids))
    return inputs, labels


def write_weights(workload: Workload, seed: int = 0) -> None:
    """Write the seeded weights of transformers' own BertForMaskedLM, as `save_pretrained` does."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    BertForMaskedLM(
        BertConfig(
            vocab_size=workload.vocab_size,
            hidden_size=workload.width,
            num_hidden_layers=workload.layers,
            num_attention_heads=workload.heads,
            intermediate_size=4 * workload.width,
            max_position_embeddings=max(512, workload.length),
            hidden_dropout_prob=workload.dropout,
            attention_probs_dropout_prob=workload.dropout,
            pad_token_id=PAD,
        )
    ).save_pretrained(workload.weights)


def _rows(documents: Iterable[list[int]], count: int, length: int) -> Tensor:
    """Return `count` rows of [CLS] text [SEP], documents cut into pieces; only the end of a document is padded."""
    rows: list[list[int]] = []
    for document in documents:
        for start in range(0, len(document), length - 2):
            text = [FIRST + token for token in document[start : start + length - 2]]
            if len(text) >= min(16, length // 2):
                rows.append([CLS, *text, SEP, *[PAD] * (length - 2 - len(text))])
        if len(rows) >= count:
            return torch.tensor(rows[:count])
    raise SystemExit(f"the corpus gives {len(rows)} rows; the workload needs {count}")
