"""What a causal language model is given: ids, the documents they belong to, the text before; checked, and as a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.checks import check_ids, check_shape
from deepseek.nn.masks import document_mask


def check_text(input_ids: Tensor, vocab_size: int, max_length: int, past: int = 0) -> None:
    """Check token ids (batch, time) that follow a cached text of `past` tokens. Raises ModelError."""
    check_ids("input_ids", input_ids, vocab_size)
    time = input_ids.shape[1]
    if not torch.compiler.is_compiling() and past + time > max_length:
        raise ModelError(
            "input_ids is too long",
            found=f"{past + time} tokens",
            wanted=f"at most max_length = {max_length}",
            fix="shorten the text, or use a model with a larger max_length",
        )


def document_attention(document_ids: Tensor | None, input_ids: Tensor, past: int = 0) -> Tensor | None:
    """Return the mask (batch, 1, time, time) that keeps attention inside a document; None where there are none.

    Raises ModelError for documents of another shape than the ids, and for documents after a cached text.
    """
    if document_ids is None:
        return None
    if past:
        raise ModelError("document_ids can't follow a text in the cache", found=f"{past} tokens in it")
    check_shape("document_ids", document_ids, tuple(input_ids.shape))
    return document_mask(document_ids)
