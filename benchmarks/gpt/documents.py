"""Documents of different lengths: HF Trainer with dynamic padding, in each of the ways that may be its best.

Batches are grouped by length and padded to their longest document; documents are cut at the model's length. What
counts is useful target tokens: those that are neither padding nor a step from one document into another.
Not here: ours, which packs (`benchmarks.gpt.ours`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpt.peers import hf_train
from benchmarks.gpt.workload import Workload


class Trained(NamedTuple):
    """What a run over the documents leaves: for each step its loss and useful targets, and the model's logits."""

    losses: list[float]
    targets: list[int]
    logits: Callable[[Tensor], Tensor]
    timed: int
    """How many of the last steps count: whole cycles of long and short documents."""


def hf_padded(workload: Workload) -> Trained:
    """bf16, eager, the same number of rows per batch as ours."""
    return _hf_documents(workload, workload.batch_size, compiled=False)


def hf_padded_compiled(workload: Workload) -> Trained:
    """bf16, compiled, the same number of rows per batch as ours."""
    return _hf_documents(workload, workload.batch_size, compiled=True)


def hf_matched(workload: Workload) -> Trained:
    """bf16, eager, as many documents per batch as hold the tokens of one packed batch."""
    return _hf_documents(workload, workload.documents_per_batch, compiled=False)


def hf_matched_compiled(workload: Workload) -> Trained:
    """bf16, compiled, as many documents per batch as hold the tokens of one packed batch."""
    return _hf_documents(workload, workload.documents_per_batch, compiled=True)


def cycle(documents: int, per_batch: int) -> int:
    """Return the batches over which HF's length-grouped sampler goes once from its longest documents to its shortest.

    Source: `get_length_grouped_indices` in transformers' trainer_pt_utils.py.
    """
    return max(min(documents // (4 * per_batch), 50), 1)


@torch.inference_mode()
def held_out_loss(logits: Callable[[Tensor], Tensor], workload: Workload, rows: int = 8) -> float:
    """Return the mean loss over the target tokens of the held-out documents, cut at the model's length, in nats."""
    documents = [document[: workload.length] for document in workload.documents("held_out")]
    loss, count = 0.0, 0
    for start in range(0, len(documents), rows):
        part = documents[start : start + rows]
        longest = max(len(document) for document in part)
        tokens = torch.full((len(part), longest), workload.pad_id)
        labels = torch.full((len(part), longest), -100)
        for row, document in enumerate(part):
            ids = torch.from_numpy(document.astype("int64"))
            tokens[row, : len(ids)] = ids
            labels[row, : len(ids) - 1] = ids[1:]
        # Padding is on the right, so that causal attention alone keeps it out of every target's sight.
        scores = logits(tokens).float()
        loss += float(F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    return loss / count


def _hf_documents(workload: Workload, documents_per_batch: int, *, compiled: bool) -> Trained:
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    file = str(workload.folder / "tokenizer.json")
    settings: dict[str, Any] = {"tokenizer_file": file, "model_max_length": workload.length}
    tokenizer = PreTrainedTokenizerFast(**settings)  # type: ignore[no-untyped-call]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(workload.pad_id)
    rows: list[dict[str, Any]] = [{"input_ids": row[: workload.length].tolist()} for row in workload.documents()]
    # The warm-up takes the first documents of a cycle, its end takes those of the next: any window of a cycle is fair.
    timed = cycle(len(rows), documents_per_batch)
    model, steps = hf_train(
        workload,
        rows,
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        max_steps=workload.skip + timed,
        per_device_train_batch_size=documents_per_batch,
        train_sampling_strategy="group_by_length",
        dataloader_drop_last=True,
        bf16=True,
        torch_compile=compiled and workload.compile,
        optim="adamw_torch_fused",
    )
    model.eval()
    model.float()

    def logits(tokens: Tensor) -> Tensor:
        found: Tensor = model(input_ids=tokens).logits
        return found

    return Trained([step.loss for step in steps], [step.targets for step in steps], logits, timed)
