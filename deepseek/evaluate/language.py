"""How good a language model is: loss, perplexity, bits a byte, beside unigram and bigram models of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deepseek.errors import DataError
from deepseek.tasks.task import Batch, Task, mean_loss


def perplexity(
    model: nn.Module, batches: Iterable[Batch], task: Task, device: torch.device | None = None
) -> dict[str, float]:
    """Return `val_loss` (nats a token) and `perplexity` of `model` on `batches`."""
    loss = mean_loss(model, batches, task, device)
    return {"val_loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def bits_per_byte(loss: float, tokens: int, num_bytes: int) -> float:
    """Return a loss in nats a token as bits a byte of text, which does not depend on the tokenizer."""
    if num_bytes <= 0:
        raise DataError("there is no text", wanted="at least one byte")
    return loss * tokens / math.log(2) / num_bytes


def unigram_loss(train: NDArray[Any], val: NDArray[Any], vocab_size: int) -> float:
    """Return the loss (nats a token) on `val` of token frequencies in `train`, one added to each count."""
    counts = np.bincount(train, minlength=vocab_size).astype(np.float64) + 1
    return float(-np.log(counts[val] / counts.sum()).mean())


def bigram_loss(train: NDArray[Any], val: NDArray[Any], vocab_size: int) -> float:
    """Return the loss (nats a token) on `val` of an interpolated bigram model of `train`.

    Witten-Bell smoothing: the more different tokens followed a token, the more is left to the unigram model.
    Source: Witten & Bell 1991, "The zero-frequency problem", IEEE Transactions on Information Theory 37(4).
    """
    if len(val) < 2 or len(train) < 2:
        raise DataError("too few tokens for a bigram model", found=min(len(val), len(train)), wanted="at least 2")
    keys, counts = np.unique(train[:-1].astype(np.int64) * vocab_size + train[1:], return_counts=True)
    first = keys // vocab_size
    following = np.bincount(first, weights=counts, minlength=vocab_size)
    different = np.bincount(first, minlength=vocab_size).astype(np.float64)
    unigram = np.bincount(train, minlength=vocab_size).astype(np.float64) + 1
    unigram /= unigram.sum()
    before, after = val[:-1].astype(np.int64), val[1:].astype(np.int64)
    wanted = before * vocab_size + after
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    seen = np.where(keys[index] == wanted, counts[index], 0)
    total = following[before] + different[before]
    mixed = np.where(total > 0, (seen + different[before] * unigram[after]) / np.maximum(total, 1), unigram[after])
    return float(-np.log(mixed).mean())
