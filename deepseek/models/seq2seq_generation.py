"""Text out of models that look at more than the text so far: at what an encoder made of another, or at a memory.

That is bound once; then the model runs token by token. How a token is chosen is `generation`'s matter.
Not here: beam search, timestamps, long recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepseek.errors import ModelError
from deepseek.models.generation import LogitsProcessor, SamplingConfig, stream_ids
from deepseek.nn.checks import check_shape
from deepseek.nn.kv_cache import KVCache
from deepseek.nn.multi_head_attention import KeysValues


class CachedDecoder:
    """A step from ids to logits, with all else it looks at bound, as `stream_ids` wants a language model."""

    def __init__(self, step: Callable[[Tensor, KVCache | None], Tensor], new_cache: Callable[[int, int], KVCache]):
        self.step = step
        self.new_cache = new_cache

    def __call__(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return logits (batch, time, vocab_size) of the tokens after those in the cache."""
        return self.step(input_ids, cache)


def decoded(
    decoder: CachedDecoder,
    start_ids: Tensor,
    sampling: SamplingConfig,
    pad_id: int,
    processors: Iterable[LogitsProcessor] = (),
) -> Tensor:
    """Return `start_ids` (batch, time) with the new tokens behind; after a row's `eos_id` comes `pad_id`.

    Raises ModelError where there is nothing to start from.
    """
    if start_ids.dim() != 2 or not start_ids.shape[1]:
        raise ModelError(
            "there is no token to start from", found=f"ids of shape {tuple(start_ids.shape)}", wanted="(batch, time)"
        )
    new = torch.stack(list(stream_ids(decoder, start_ids, sampling, processors)), dim=1)
    if sampling.eos_id is not None:
        ended = (new == sampling.eos_id).long()
        new = new.masked_fill(ended.cumsum(1) - ended > 0, pad_id)
    return torch.cat([start_ids, new], dim=1)


def check_answers(name: str, ids: Tensor, encoded: Tensor | Sequence[KeysValues]) -> None:
    """Check that there is one answer (batch, time) for each text or recording that was encoded. Raises ModelError."""
    batch = encoded.shape[0] if isinstance(encoded, Tensor) else encoded[0][0].shape[0]
    check_shape(name, ids, (batch, "time"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients for the block; its mode comes back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
