"""Writes the GPT workload: real tokens, documents of different lengths, and initial weights.

Not here: reading them (`benchmarks.gpt.workload`), so that a peer's process imports nothing of ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.gpt.reference import ReferenceGPT
from benchmarks.gpt.workload import Workload
from deepseek.data.corpus import python_corpus
from deepseek.data.tokenizer import Tokenizer


def source_text(folder: str | None = None) -> Iterator[str]:
    """Yield real English documents: Tiny Shakespeare's speeches where `DEEPSEEK_TEST_DATA` (or `folder`) has the
    file, else the documentation that comes with Python."""
    root = folder or os.environ.get("DEEPSEEK_TEST_DATA")
    file = Path(root, "text", "tinyshakespeare") if root else None
    found = sorted(file.glob("*.txt")) if file else []
    if not found:
        yield from python_corpus()
        return
    for speech in found[0].read_text(encoding="utf-8").split("\n\n"):
        if speech.strip():
            yield speech.strip()


def write_workload(folder: Path, texts: Iterable[str], shape: Workload | None = None) -> Workload:
    """Write tokenizer, token stream and initial weights for `shape` (the full size by default) into `folder`."""
    documents = list(texts)
    workload = replace(shape or Workload(folder), folder=folder)
    tokenizer = Tokenizer.train(documents, vocab_size=workload.vocab_size)
    tokenizer.save(folder / "tokenizer.json")
    workload = replace(workload, eos_id=tokenizer.eos_id, pad_id=tokenizer.end_id)
    np.save(folder / "tokens.npy", _stream(documents, tokenizer, workload.steps * workload.tokens_per_step + 1))
    write_weights(workload)
    workload.save()
    return workload


def write_documents(workload: Workload, texts: Iterable[str], count: int, held_out: int) -> Workload:
    """Add `count` training documents and `held_out` others, taken evenly from `texts`, to the workload's folder.

    Writes them as JSONL (`train.jsonl`, what ours reads) and as tokens (what the padding peers read).
    """
    documents = list(texts)
    chosen = documents[:: max(len(documents) // (count + held_out), 1)][: count + held_out]
    tokenizer = Tokenizer.load(workload.folder / "tokenizer.json")
    spacing = max(len(chosen) // held_out, 2)
    parts = {
        "held_out": chosen[::spacing][:held_out],
        "train": [text for index, text in enumerate(chosen) if index % spacing],
    }
    for name, part in parts.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in part)
        (workload.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rows = [[*tokenizer.encode(text), workload.eos_id] for text in part]
        ends = np.cumsum([len(row) for row in rows])
        flat = np.concatenate([np.asarray(row, dtype=np.uint16) for row in rows])
        np.savez(workload.folder / f"{name}_documents.npz", tokens=flat, ends=ends)
    targets = [min(len(row), workload.length) - 1 for row in workload.documents("train")]
    matched = round(workload.tokens_per_step * len(targets) / max(sum(targets), 1))
    workload = replace(workload, documents_per_batch=max(matched, 1))
    workload.save()
    return workload


def write_weights(workload: Workload, seed: int = 0) -> None:
    """Write the seeded initial weights of the reference model."""
    torch.manual_seed(seed)
    model = ReferenceGPT(workload)
    save_file({name: value.contiguous() for name, value in model.named_parameters()}, workload.weights_path)


def _stream(documents: Iterable[str], tokenizer: Tokenizer, count: int) -> NDArray[np.uint16]:
    """Return the first `count` tokens of the documents, each document followed by the end token."""
    tokens: list[int] = []
    for document in documents:
        tokens += [*tokenizer.encode(document), tokenizer.eos_id]
        if len(tokens) >= count:
            return np.asarray(tokens[:count], dtype=np.uint16)
    raise SystemExit(f"the corpus gives {len(tokens)} tokens; the workload needs {count}")
