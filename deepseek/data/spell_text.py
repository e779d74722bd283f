"""The stage that spells a transcript in characters, the tokens that CTC learns. Not here: subwords (`tokenize`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch

from deepseek.data.pipeline.stage import Domain, LearnedStage, Sample
from deepseek.errors import ConfigError, DataError


@dataclass(frozen=True)
class SpellText(LearnedStage):
    """Adds `labels` (characters,) int64: 1 and up for the characters of `text` by their place in `alphabet`.

    0 is left for CTC's blank, the number after the last character for the end of a text, so a model needs
    `vocab_size` = `len(alphabet)` + 2. The alphabet is learned from the training texts where it is not given.
    `lower` folds case first. A character that is not in the alphabet raises DataError, or is left out by
    `unknown="drop"`.
    """

    alphabet: str | None = None
    lower: bool = True
    unknown: str = "error"

    takes: ClassVar[Domain] = Domain.TEXT
    gives: ClassVar[Domain] = Domain.TEXT

    def __post_init__(self) -> None:
        if self.unknown not in ("error", "drop"):
            raise ConfigError("unknown must say what happens", found=repr(self.unknown), wanted="'error' or 'drop'")
        if self.alphabet is not None and len(set(self.alphabet)) != len(self.alphabet):
            raise ConfigError("alphabet has a character twice", found=repr(self.alphabet))

    @property
    def is_learned(self) -> bool:
        return self.alphabet is not None

    @property
    def vocab_size(self) -> int:
        """The tokens of a model: the blank, the characters, the end."""
        return len(self.alphabet or "") + 2

    def learned(self, samples: Iterable[Sample]) -> Self:
        """Return the stage with all characters of the samples' texts, in order."""
        found: set[str] = set()
        for sample in samples:
            found.update(self._folded(sample))
        if not found:
            raise DataError("there is no alphabet to learn", found="no text in any sample")
        return dataclasses.replace(self, alphabet="".join(sorted(found)))

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with `labels`. Raises DataError."""
        if self.alphabet is None:
            raise DataError("SpellText has no alphabet", fix="give alphabet=, or call learned(samples)")
        places = {character: place for place, character in enumerate(self.alphabet, 1)}
        ids = []
        for character in self._folded(sample):
            if character in places:
                ids.append(places[character])
            elif self.unknown == "error":
                raise DataError(
                    "the text has a character that is not in the alphabet",
                    found=repr(character),
                    wanted=repr(self.alphabet),
                    fix='unknown="drop" leaves such characters out',
                )
        if not ids:
            raise DataError("the text is empty", found=repr(sample["text"])[:60], wanted="at least one character")
        return {**sample, "labels": torch.tensor(ids, dtype=torch.int64)}

    def spelled(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; the blank, the end and paddings are left out."""
        alphabet = self.alphabet or ""
        return "".join(alphabet[one - 1] for one in ids if 1 <= one <= len(alphabet))

    def _folded(self, sample: Sample) -> str:
        text = sample.get("text")
        if not isinstance(text, str):
            raise DataError("the sample has no text to spell", found=", ".join(sorted(sample)), wanted="text")
        return text.lower() if self.lower else text
