"""The states of all running texts of an LSTM, one on the other: a step of all of them is one call of the model.

Texts of different lengths are read together as far as the shortest goes, then the others on: as many steps as the
longest has tokens. Not here: what is read when (`past_runner`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.models.lstm import LSTM, LSTMCache
from deepseek.nn.row_linear import RowLinear
from deepseek.serve.text.places import Places

_ROOM = 8  # texts that there is room for from the beginning


class StackedStates:
    """Reads texts with an LSTM; see `past_runner.Pasts`."""

    segment = 1

    def __init__(self, model: LSTM, device: torch.device) -> None:
        self._model, self._device = model, device
        hidden, _ = model.new_cache(1).states[0]
        # layers of our kernel sum in float32, whatever their weights are
        dtype = torch.float32 if isinstance(model.lm_head, RowLinear) else hidden.dtype
        shape = 2 * model.config.num_layers, _ROOM, model.config.hidden_size
        self._states = torch.zeros(shape, dtype=dtype, device=device)  # hidden and cell state of each layer in turn
        self._places = Places()

    def read(self, texts: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Read the next `ids` of each text; return the logits (texts, vocab_size) behind them."""
        order = sorted(range(len(texts)), key=lambda text: -len(ids[text]))
        places = torch.tensor([self._place(texts[text]) for text in order], device=self._device)
        states, lengths = self._states.index_select(1, places), [len(ids[text]) for text in order]
        done, going, found = 0, len(order), list[Tensor]()
        while going:
            end = lengths[going - 1]
            tokens = torch.tensor([list(ids[text][done:end]) for text in order[:going]], device=self._device)
            x = self._advance(tokens, states[:, :going])
            done, before = end, going
            while going and lengths[going - 1] == end:
                going -= 1
            found.insert(0, x[going:before])
        self._states.index_copy_(1, places, states)
        logits: Tensor = self._model.lm_head(torch.cat(found))
        back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=self._device)
        return logits.index_select(0, back)

    def forget(self, text: int) -> None:
        """Forget a text, if it is known."""
        self._places.leave(text)

    def _advance(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Move `states` on by `tokens` (texts, time), in place; return what the output layer reads of the last ones."""
        cache = LSTMCache([(states[layer], states[layer + 1]) for layer in range(0, states.shape[0], 2)])
        features = self._model.forward_features(tokens, cache=cache)
        for kept, state in zip(states, (part for pair in cache.states for part in pair), strict=True):
            kept.copy_(state)
        return features[:, -1]

    def _place(self, text: int) -> int:
        """Return where a text's states stand; zeros where it begins."""
        place, begins = self._places.of(text)
        if place >= self._states.shape[1]:
            self._states = torch.cat([self._states, torch.zeros_like(self._states)], dim=1)
        if begins:
            self._states[:, place] = 0
        return place
