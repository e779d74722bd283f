"""A step of a prepared decoder in two calls of our kernel: all blocks with their attention, then the output layer.

With a call for each part of a block, Python's and torch's own time is a sixth of a small model's step. GPT and Llama on
the CPU, over pages; everything else is computed by the model itself. Not here: the kernel (`deepseek.nn.row_products`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.models.gpt import GPT
from deepseek.models.llama import Llama, LlamaConfig
from deepseek.nn.paged_attention import Texts, fits
from deepseek.nn.rotary import rotation
from deepseek.nn.row_blocks import RowBlock, row_norm, row_weight
from deepseek.nn.row_linear import RowEmbedding, RowLinear
from deepseek.nn.row_products import Attend, LookUp, Multiply, Rotate, RowChain, library
from deepseek.nn.text_input import check_text
from deepseek.serve.text.paged_cache import PagedCache, Step

_X, _PROJECTED, _ATTENDED, _BETWEEN, _WIDE, _IDS, _POSITIONS, _COSINE, _SINE = range(9)  # places of a chain's tensors
_SMALLEST = 64  # rows that there is room for from the beginning


class RowDecoder:
    """Computes steps of `model`, whose keys and values are in `cache`; see `row_decoder`."""

    def __init__(self, model: Any, cache: PagedCache) -> None:
        blocks: list[RowBlock] = list(model.blocks)
        self._config, self._cache = model.config, cache
        steps: list[Multiply | Rotate | LookUp | Attend] = [LookUp(row_weight(model.token_embedding), _IDS, _X)]
        if type(model) is GPT:
            steps.append(LookUp(row_weight(model.position_embedding), _POSITIONS, _X, residual=_X))
        for block, keys, values in zip(blocks, cache.keys, cache.values, strict=True):
            projected, _, wide = block.widths
            kv_heads, dim = keys.shape[2:]
            steps += block.steps_before(_X, _PROJECTED, _COSINE, _SINE)
            steps.append(Attend(_PROJECTED, _ATTENDED, projected // dim - 2 * kv_heads, kv_heads, dim, keys, values))
            steps += block.steps_after(_ATTENDED, _X, _BETWEEN, _WIDE, _X)
        self._blocks = RowChain(steps)
        self._head = RowChain([Multiply(row_weight(model.lm_head), 0, 1, norm=row_norm(model.norm))])
        d_model, (projected, attended, wide) = model.lm_head.in_features, blocks[0].widths
        self._rooms = [(width, torch.float32) for width in (d_model, projected, attended, d_model, wide)]
        self._rooms += [(1, torch.int64)] * 2
        if isinstance(model.config, LlamaConfig):
            self._rooms += [(model.config.head_width // 2, torch.float32)] * 2
        self._room: list[Tensor] = []

    def logits(self, ids: Tensor, step: Step, last: Tensor) -> Tensor:
        """Compute the tokens `ids` (1, tokens) of a step; return the logits (rows, vocab_size) of the rows `last`.

        Raises ModelError for ids that are none of the model's, and for a text that is too long.
        """
        config, rows, tokens = self._config, ids.shape[1], ids.numpy()
        if step.longest > config.max_length or tokens.min() < 0 or tokens.max() >= config.vocab_size:
            check_text(ids, config.vocab_size, config.max_length, self._cache.length)
        if not self._room or self._room[0].shape[0] < rows:
            self._room = [torch.empty(max(rows, _SMALLEST), width, dtype=kind) for width, kind in self._rooms]
        tensors = [tensor[:rows] for tensor in self._room]
        given = [ids[0, :, None], step.positions[:, None]]
        if isinstance(config, LlamaConfig):
            given += rotation(step.positions, config.head_width, config.rope_base, config.rope_scaling)
        for tensor, values in zip(tensors[_IDS:], given, strict=True):
            tensor.copy_(values)  # a chain whose tensors stay where they are is not told anew
        self._blocks.run(tensors, Texts(step.block_table, step.starts, step.lengths, step.slots))
        wanted = tensors[_X] if last.shape[0] == rows else tensors[_X].index_select(0, last)
        found = torch.empty(wanted.shape[0], config.vocab_size)
        if wanted.shape[0]:
            self._head.run([wanted, found])
        return found


def row_decoder(model: Any, cache: PagedCache) -> RowDecoder | None:
    """Return what computes steps of a model that `prepare_weights` has prepared, None where it is none of these."""
    if type(model) not in (GPT, Llama) or library() is None or not all(map(fits, [*cache.keys, *cache.values])):
        return None
    tables = [model.token_embedding, *([model.position_embedding] if type(model) is GPT else [])]
    if not isinstance(model.lm_head, RowLinear) or not all(isinstance(table, RowEmbedding) for table in tables):
        return None
    return RowDecoder(model, cache) if _alike(list(model.blocks)) and row_norm(model.norm) is not None else None


def _alike(blocks: Sequence[nn.Module]) -> bool:
    """Return whether these are blocks of our kernel, all of the same widths (pruned ones may differ)."""
    known = [block.widths for block in blocks if isinstance(block, RowBlock)]
    return len(known) == len(blocks) and len(set(known)) == 1
