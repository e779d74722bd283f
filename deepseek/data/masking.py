"""The stage that hides tokens of a text, for a model that learns to say what stood there.

Of the hidden tokens most become the mask token, some any other token and the rest stay, so that the model must look at
every token. What is hidden depends on (seed, epoch, index) alone: it differs from epoch to epoch (dynamic masking; Liu
et al. 2019, "RoBERTa", arXiv:1907.11692, section 4.1) and is the same in a resumed run.
Sources: Devlin et al. 2018, "BERT", arXiv:1810.04805, section 3.1; Cui et al. 2019, "Pre-Training with Whole Word
Masking for Chinese BERT", arXiv:1906.08101 (whole words).
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.data.tokenize import stored_tokenizer
from deepseek.data.tokenizer import Tokenizer
from deepseek.data.words import Lexicon, Piece, word_numbers
from deepseek.errors import ConfigError, DataError

_IGNORED = -100


@dataclass(frozen=True)
class MaskTokens(SampleStage):
    """Hide a `share` of the tokens in `input_ids` (time,), at least one; special tokens never.

    `mask_share` of them become `mask_token`, `random_share` a random token, the rest stay. Without `max_hidden` the
    sample gets `labels` (time,), -100 where nothing is hidden; with it at most so many are hidden, and it gets
    `masked_positions` (max_hidden,) and `labels` (max_hidden,), -100 behind the last: batches of one shape.
    `whole_words` hides all tokens of a word or none; `word_list` is a file of Chinese words, one a line, without which
    each character is a word. `tokenizer` is the path of a tokenizer.

    Raises ConfigError for settings, and for a tokenizer without the mask token.
    """

    tokenizer: str
    share: float = 0.15
    max_hidden: int | None = None
    whole_words: bool = False
    word_list: str | None = None
    mask_token: str = "[MASK]"
    mask_share: float = 0.8
    random_share: float = 0.1

    takes: ClassVar[Domain] = Domain.TOKENS
    gives: ClassVar[Domain] = Domain.TOKENS

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError("share is a share", found=self.share, wanted="above 0, at most 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ConfigError(
                "mask_share and random_share are parts of one",
                found=f"{self.mask_share} and {self.random_share}",
                wanted="0 or more, together at most 1",
            )
        if self.max_hidden is not None and self.max_hidden < 1:
            raise ConfigError("max_hidden is too small", found=self.max_hidden, wanted="at least 1, or None")
        if self.word_list is not None and not self.whole_words:
            raise ConfigError("word_list is for whole words", found=self.word_list, fix="set whole_words to true")

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        ids = sample["input_ids"].numpy()
        words = _vocabulary(stored_tokenizer(self.tokenizer), self.mask_token)
        hidden = self._choose(self._groups(ids, words), rng)
        if not len(hidden):
            raise DataError("the text has no token to hide", found=f"{len(ids)} tokens, special ones among them")
        changed, chance = ids.copy(), rng.random(len(hidden))
        changed[hidden[chance < self.mask_share]] = words.mask_id
        random = hidden[(chance >= self.mask_share) & (chance < self.mask_share + self.random_share)]
        changed[random] = words.plain_ids[rng.integers(len(words.plain_ids), size=len(random))]
        done = {**sample, "input_ids": torch.from_numpy(changed)}
        if self.max_hidden is None:
            labels = np.full(len(ids), _IGNORED, dtype=np.int64)
            labels[hidden] = ids[hidden]
            return {**done, "labels": torch.from_numpy(labels)}
        places = np.zeros(self.max_hidden, dtype=np.int64)
        labels = np.full(self.max_hidden, _IGNORED, dtype=np.int64)
        places[: len(hidden)], labels[: len(hidden)] = hidden, ids[hidden]
        return {**done, "masked_positions": torch.from_numpy(places), "labels": torch.from_numpy(labels)}

    def _groups(self, ids: np.ndarray[Any, Any], words: _Vocabulary) -> list[list[int]]:
        """Return the places that are hidden together."""
        known = (ids >= 0) & (ids < len(words.plain))
        plain = np.flatnonzero(known & words.plain[np.where(known, ids, 0)])
        if not self.whole_words:
            return [[place] for place in plain.tolist()]
        is_plain = set(plain.tolist())
        pieces = [words.pieces[index] if place in is_plain else None for place, index in enumerate(ids.tolist())]
        groups: dict[int, list[int]] = {}
        for place, number in enumerate(word_numbers(pieces, _lexicon(self.word_list))):
            if number >= 0:
                groups.setdefault(number, []).append(place)
        return list(groups.values())

    def _choose(self, groups: list[list[int]], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Return places in rising order: groups by chance, up to the share; a group that is too large is passed by."""
        wanted = max(1, round(self.share * sum(map(len, groups))))
        limit = wanted if self.max_hidden is None else min(wanted, self.max_hidden)
        chosen: list[int] = []
        for number in rng.permutation(len(groups)).tolist():
            if len(chosen) + len(groups[number]) <= limit:
                chosen += groups[number]
            if len(chosen) == limit:
                break
        if not chosen and groups:  # every word is longer than the share: hide one as far as there is room
            chosen = groups[int(rng.integers(len(groups)))][: self.max_hidden]
        return np.array(sorted(chosen), dtype=np.int64)


class _Vocabulary:
    """What masking needs to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, mask_token: str) -> None:
        special = tokenizer.special_tokens
        if mask_token not in special:
            raise ConfigError(
                "the tokenizer has no mask token",
                found=f"special tokens {', '.join(special)}",
                wanted=mask_token,
                fix=f"add it: tokenizer.with_special_tokens([{mask_token!r}]), and build the model for the new size",
            )
        self.mask_id = special[mask_token]
        self.plain = np.ones(tokenizer.vocab_size, dtype=np.bool_)
        self.plain[list(special.values())] = False
        self.plain_ids = np.flatnonzero(self.plain)
        names = _word_pieces(tokenizer)
        self.pieces = [
            Piece(tokenizer.token_bytes(index), names is None or names.get(index, "").startswith("##"))
            for index in range(tokenizer.vocab_size)
        ]


def _word_pieces(tokenizer: Tokenizer) -> dict[int, str] | None:
    """Return the tokens as a WordPiece vocabulary writes them, None for other kinds, which keep their spaces."""
    model = json.loads(tokenizer.to_json())["model"]
    return {index: name for name, index in model["vocab"].items()} if model.get("type") == "WordPiece" else None


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, mask_token: str) -> _Vocabulary:
    return _Vocabulary(tokenizer, mask_token)


@functools.lru_cache(maxsize=4)
def _lexicon(path: str | None) -> Lexicon:
    return Lexicon() if path is None else Lexicon.read(path)
