"""The stage that turns a sample's text, or its chat, into token ids.

Not here: the tokenizer (`tokenizer`), and sequences without padding for language models (`packing`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from deepseek.data.pipeline.stage import Domain, Sample, SampleStage
from deepseek.data.tokenizer import Tokenizer
from deepseek.errors import ConfigError, DataError

Truncation = Literal["right", "left", "error"]
_IGNORED = -100


@dataclass(frozen=True)
class Tokenize(SampleStage):
    """`text` to `input_ids` (time,) int64; a sample that also has `messages` is encoded as a chat of these,
    which are gone then.

    `tokenizer` is the path of a `tokenizer.json` that `Tokenizer.save` wrote, or a folder in the Hugging Face layout.
    What is longer than `max_length` loses its end ("right"), its beginning ("left"), or raises DataError ("error").
    `add_special_tokens` sets an imported tokenizer's own tokens around a text ([CLS]), `add_eos` the one that ends a
    document behind it. With `labels` the sample gets `labels` (time,) int64 too, the next token of each, -100 where
    nothing is to be learned (in a chat all but what the assistant says); the last token is then a label alone.

    Raises ConfigError for settings, and for a tokenizer that can't be read when the stage is first used.
    """

    tokenizer: str
    max_length: int | None = None
    truncation: Truncation = "right"
    add_special_tokens: bool = False
    add_eos: bool = False
    labels: bool = False

    takes: ClassVar[Domain] = Domain.TEXT
    gives: ClassVar[Domain] = Domain.TOKENS

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, str) or not self.tokenizer:
            raise ConfigError("Tokenize needs the path of a tokenizer", found=repr(self.tokenizer), wanted="a path")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError("max_length is too small", found=self.max_length, wanted="at least 1, or None")
        if self.truncation not in get_args(Truncation):
            raise ConfigError(
                "unknown truncation", found=repr(self.truncation), wanted=", ".join(map(repr, get_args(Truncation)))
            )

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        ids, learned = self._encode(sample)
        room = None if self.max_length is None else self.max_length + self.labels
        if room is not None and len(ids) > room:
            if self.truncation == "error":
                raise DataError(
                    "the text has too many tokens", found=len(ids) - self.labels, wanted=f"at most {self.max_length}"
                )
            kept = slice(None, room) if self.truncation == "right" else slice(len(ids) - room, None)
            ids, learned = ids[kept], learned[kept]
        tokens = torch.tensor(ids, dtype=torch.int64)
        rest = {key: value for key, value in sample.items() if key != "messages"}  # texts and chats make a batch
        if not self.labels:
            return {**rest, "input_ids": tokens}
        if len(ids) < 2:
            raise DataError("the text is too short to learn from", found=f"{len(ids)} tokens", wanted="at least 2")
        targets = tokens[1:].masked_fill(~torch.tensor(learned[1:], dtype=torch.bool), _IGNORED)
        return {**rest, "input_ids": tokens[:-1], "labels": targets}

    def _encode(self, sample: Sample) -> tuple[list[int], list[bool]]:
        tokenizer = stored_tokenizer(self.tokenizer)
        end = [tokenizer.eos_id] if self.add_eos else []
        if sample.get("messages"):
            if not self.labels:
                ids = tokenizer.encode_chat(sample["messages"], add_generation_prompt=False)
                return [*ids, *end], []
            ids, learned = tokenizer.encode_chats([sample["messages"]])[0]
            return [*ids, *end], [*learned, *(False for _ in end)]
        ids = [*tokenizer.encode(sample["text"], add_special_tokens=self.add_special_tokens), *end]
        return ids, [True] * len(ids)


def stored_tokenizer(path: str) -> Tokenizer:
    """Return the tokenizer at `path`, read once in every process and again when it changes. Raises ConfigError."""
    return _tokenizer(*_stamped(path))


def _stamped(path: str) -> tuple[str, int]:
    """Return the path with what changes when the tokenizer there is written anew."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        return path, file.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"can't read the tokenizer {file}", found=error.strerror, fix="check its path") from None


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str, _: int) -> Tokenizer:
    """Return the tokenizer at `path`, read once in every process."""
    return Tokenizer.from_pretrained(path)
