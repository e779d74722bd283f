"""BERTScore: how well two texts say the same, by greedy matching of their tokens' contextual embeddings.

Source: Zhang et al. 2019, "BERTScore: Evaluating Text Generation with BERT", arXiv:1904.09675, without importance
weighting and without rescaling by a baseline. Not here: the model that makes the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deepseek.errors import DataError


class BertScore(NamedTuple):
    """Precision, recall and F1, each float32 (candidates, references), -1 to 1."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def bert_score(candidates: Sequence[Tensor], references: Sequence[Tensor]) -> BertScore:
    """Return the scores of every candidate with every reference.

    A text is a tensor (tokens, d) of its tokens' embeddings, without the special ones; at least one token.
    Raises DataError for other shapes.
    """
    every = [*candidates, *references]
    if not candidates or not references or any(text.ndim != 2 or not len(text) for text in every):
        shapes = sorted({tuple(text.shape) for text in every})
        raise DataError("BERTScore needs embeddings of at least one token", found=shapes, wanted="(tokens, d) for each")
    if len({text.shape[1] for text in every}) > 1:
        raise DataError("the embeddings differ in width", found=sorted({text.shape[1] for text in every}))
    known, known_mask = _normalised(references)  # (references, tokens, d), (references, tokens)
    rows = [_one(candidate, known, known_mask) for candidate in candidates]
    precision = torch.stack([row[0] for row in rows])
    recall = torch.stack([row[1] for row in rows])
    total = precision + recall
    f1 = torch.where(total.abs() > 1e-12, 2 * precision * recall / total.where(total.abs() > 1e-12, 1.0), 0.0)
    return BertScore(precision, recall, f1)


def _one(candidate: Tensor, references: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return one candidate's precision and recall with each reference, both (references,)."""
    similarity = torch.nn.functional.normalize(candidate.float(), dim=1) @ references.transpose(1, 2)
    similarity = similarity.masked_fill(~mask[:, None, :], -2.0)  # (references, candidate tokens, reference tokens)
    precision = similarity.amax(dim=2).mean(dim=1)
    recall = (similarity.amax(dim=1) * mask).sum(dim=1) / mask.sum(dim=1)
    return precision, recall


def _normalised(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    padded = pad_sequence([torch.nn.functional.normalize(text.float(), dim=1) for text in texts], batch_first=True)
    mask = pad_sequence([torch.ones(len(text), dtype=torch.bool) for text in texts], batch_first=True)
    return padded, mask
