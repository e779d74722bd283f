"""Attention masks against their definitions, pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepseek.nn.masks import causal_mask, chunk_mask, document_mask, padding_mask, sliding_mask

CPU = torch.device("cpu")
SQUARE: dict[str, tuple[Tensor, Callable[[int, int], bool]]] = {
    "causal": (causal_mask(6, 0, CPU), lambda t, s: s <= t),
    "sliding": (sliding_mask(6, 3, CPU), lambda t, s: t - 3 < s <= t),
    "sliding over one": (sliding_mask(6, 1, CPU), lambda t, s: s == t),
    "chunks": (chunk_mask(6, 2, None, CPU), lambda t, s: s // 2 <= t // 2),
    "chunks, one back": (chunk_mask(6, 2, 1, CPU), lambda t, s: t // 2 - 1 <= s // 2 <= t // 2),
    "chunks alone": (chunk_mask(6, 4, 0, CPU), lambda t, s: s // 4 == t // 4),
}


@pytest.mark.parametrize("kind", SQUARE)
def test_square_masks(kind: str) -> None:
    mask, allowed = SQUARE[kind]
    assert mask.tolist() == [[allowed(t, s) for s in range(6)] for t in range(6)]


def test_a_causal_mask_after_a_cached_text() -> None:
    assert causal_mask(2, 3, CPU).tolist() == [[True] * 4 + [False], [True] * 5]


def test_documents_and_padding() -> None:
    documents = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 2]])
    wanted = [[[s <= t and row[s] == row[t] for s in range(4)] for t in range(4)] for row in documents.tolist()]
    assert document_mask(documents)[:, 0].tolist() == wanted
    found = padding_mask(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert found.shape == (2, 1, 1, 3) and found[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]
