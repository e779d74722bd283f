"""The memories of all running texts of a Transformer-XL, kept as keys and values: a token costs one row of products.

The model alone projects its whole memory again with every segment; keys and values of a token never change, so they are
made once. A text's last `memory_length` tokens and its newest one stand in a ring. The products are one call for the
tokens of all texts. Attention is a call for each: torch's products for several differ in their last bits with the
number of texts, and then an answer would depend on its neighbours. Not here: what is read when (`past_runner`).
Source: Dai et al. 2019, "Transformer-XL", arXiv:1901.02860, section 3.2 and appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.models.transformer_xl import TransformerXL, TransformerXLBlock
from deepseek.nn.checks import check_ids
from deepseek.nn.masks import causal_mask
from deepseek.nn.positions import relative_position_encoding

_ROOM = 64
"""Rings and distances grow by so many tokens: where a row begins in memory must not change its last bits either."""


class _Memory:
    """The keys and values of one text; `length`: tokens read so far. Token p stands in place p modulo the ring's size.

    While the ring is not full, room behind it moves nothing.
    """

    def __init__(self, longest: int, widths: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        """`longest`: the most tokens that are kept. `widths`: of each layer's keys and values together."""
        self.length, self._longest = 0, longest
        ring = min(_ROOM, longest)
        self.kept = [torch.zeros(ring, width, dtype=dtype, device=device) for width in widths]

    def grow(self, time: int) -> None:
        """Have room for `time` more tokens, or for as many as are kept."""
        ring, wanted = self.kept[0].shape[0], min(self.length + time, self._longest)
        if wanted > ring:
            more = min(max(2 * ring, -(-wanted // _ROOM) * _ROOM), self._longest) - ring
            self.kept = [F.pad(kept, (0, 0, 0, more)) for kept in self.kept]

    def past(self, layer: int) -> Tensor:
        """Return what is kept of the tokens before the newest place, in order: (tokens, width)."""
        kept = self.kept[layer]
        ring, tokens = kept.shape[0], min(self.length, self._longest - 1)
        start = (self.length - tokens) % ring
        if start + tokens <= ring:
            return kept[start : start + tokens]
        return torch.cat([kept[start:], kept[: start + tokens - ring]])

    def keep(self, layer: int, new: Tensor) -> None:
        """Keep the keys and values (time, width) of the next tokens."""
        kept = self.kept[layer]
        ring, newest = kept.shape[0], new[-kept.shape[0] :]
        start = (self.length + new.shape[0] - newest.shape[0]) % ring
        first = min(newest.shape[0], ring - start)
        kept[start : start + first] = newest[:first]
        kept[: newest.shape[0] - first] = newest[first:]


class Memories:
    """Reads texts with a Transformer-XL; see `past_runner.Pasts`."""

    def __init__(self, model: TransformerXL, max_length: int, device: torch.device) -> None:
        self._model, self._device = model, device
        self._blocks = [cast(TransformerXLBlock, block) for block in model.blocks]
        self._kept = min(model.config.memory_length, max_length) + 1
        self._memories: dict[int, _Memory] = {}
        # a layer's keys (1, num_heads, reach, head_dim) of the distances reach - 1 down to 0; behind them once more
        # those of a full ring, whose places hold distances that fall to 0 and go on from the largest
        self._distances: list[Tensor] = []
        self._reach = 0

    @property
    def segment(self) -> int:
        """How many tokens of a prompt are read at once."""
        return max(1, self._model.config.memory_length)

    def read(self, texts: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Read the next `ids` of each text, in segments; return the logits (texts, vocab_size) behind them."""
        rest = {text: list(tokens) for text, tokens in zip(texts, ids, strict=True)}
        last: dict[int, Tensor] = {}
        while rest:
            pieces = {text: tokens[: self.segment] for text, tokens in rest.items()}
            x, end = self._read_segments(pieces), 0
            for text, piece in pieces.items():
                end += len(piece)
                last[text] = x[end - 1]
            rest = {text: tokens[self.segment :] for text, tokens in rest.items() if len(tokens) > self.segment}
        logits: Tensor = self._model.lm_head(torch.stack([last[text] for text in texts]))
        return logits

    def forget(self, text: int) -> None:
        """Forget a text, if it is known."""
        self._memories.pop(text, None)

    def _read_segments(self, pieces: dict[int, list[int]]) -> Tensor:
        """Return the features (tokens, d_model) of the next segment of each text, one behind the other."""
        config = self._model.config
        tokens = torch.tensor([[token for piece in pieces.values() for token in piece]], device=self._device)
        check_ids("input_ids", tokens, config.vocab_size)
        x = self._model.token_embedding(tokens)[0] * math.sqrt(config.d_model)
        memories = [self._memory(text, len(piece)) for text, piece in pieces.items()]
        times = [len(piece) for piece in pieces.values()]
        self._have_distances(max(memory.length + time for memory, time in zip(memories, times, strict=True)))
        for layer, block in enumerate(self._blocks):
            x = block.around(x, partial(self._attended, layer, memories, times))
        for memory, time in zip(memories, times, strict=True):
            memory.length += time
        features: Tensor = self._model.norm(x)
        return features

    def _attended(self, layer: int, memories: Sequence[_Memory], times: list[int], x: Tensor) -> Tensor:
        """Return what attention makes of the rows (tokens, d_model) of all texts, and keep their keys and values."""
        attention = self._blocks[layer].attention
        query, new = attention.query(x), torch.cat([attention.key(x), attention.value(x)], dim=-1)
        parts = zip(memories, torch.split(query, times), torch.split(new, times), strict=True)
        look = [self._look(layer, memory, asked, made) for memory, asked, made in parts]
        out: Tensor = attention.out(torch.cat(look))
        return out

    def _look(self, layer: int, memory: _Memory, query: Tensor, new: Tensor) -> Tensor:
        """Return what the output layer reads, (time, width), for the next tokens of one text.

        Those of a segment are kept after they looked: what they push out of the ring is looked at by them. One token
        pushes out what it does not look at any more, and looks at the ring as it lies there.
        """
        attention, time = self._blocks[layer].attention, query.shape[0]
        if time == 1:
            memory.keep(layer, new)
            seen, mask = memory.kept[layer][: memory.length + 1], None
            start = self._reach - 1 - memory.length % memory.kept[layer].shape[0]
        else:
            seen = torch.cat([memory.past(layer).to(new.dtype), new])
            memory.keep(layer, new)
            mask = causal_mask(time, seen.shape[0] - time, self._device)
            start = self._reach - seen.shape[0]
        distance = self._distances[layer][:, :, start : start + seen.shape[0]]
        key, value = (attention.heads(part[None]) for part in seen.to(new.dtype).chunk(2, dim=-1))
        found: Tensor = attention.attend(attention.heads(query[None]), key, value, distance, mask)[0]
        return found

    def _memory(self, text: int, time: int) -> _Memory:
        """Return a text's memory with room for `time` more tokens."""
        if text not in self._memories:
            biases = [block.attention.content_bias for block in self._blocks]
            widths = [2 * bias.numel() for bias in biases]
            self._memories[text] = _Memory(self._kept, widths, biases[0].dtype, self._device)
        memory = self._memories[text]
        memory.grow(time)
        return memory

    def _have_distances(self, length: int) -> None:
        """Have the keys of all distances in a text of `length` tokens."""
        wanted = min(length, self._kept - 1 + self.segment)
        if wanted <= self._reach:
            return
        self._reach = -(-max(wanted, 2 * self._reach) // _ROOM) * _ROOM
        ring = self._kept if self._reach >= self._kept else 0
        places = torch.arange(self._reach + -(-ring // _ROOM) * _ROOM, device=self._device)
        distance = (torch.where(places < self._reach, self._reach, self._reach + ring) - 1 - places).clamp(min=0)
        encoding = relative_position_encoding(distance, self._model.config.d_model)
        layers = [block.attention for block in self._blocks]
        self._distances = [
            layer.heads(layer.position(encoding.to(layer.content_bias.dtype))[None]).contiguous() for layer in layers
        ]
