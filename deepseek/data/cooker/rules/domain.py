"""Rule `domain`: documents that don't fit a domain are dropped, by BERTScore or by an offline n-gram proxy.

BERTScore is `cooker.bertscore` with the nearest of the reference texts. The proxy is no BERTScore and its numbers can't
be compared with one: it is the share of a document's word pairs (character pairs in Chinese) that the references have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from deepseek.data.cooker.config import DomainConfig
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.hashing import Hashes, ngram_hashes, text_hashes
from deepseek.data.cooker.script import units

if TYPE_CHECKING:
    from torch import Tensor

Embed = Callable[[list[str]], "list[Tensor]"]
"""Texts to the embeddings (tokens, d) of their tokens."""


@dataclass(frozen=True)
class DomainProxy:
    """The offline stand-in. `known` are the sorted hashes of the references' pairs."""

    config: DomainConfig
    known: Hashes
    name = "domain"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return the reason to drop; the value is the share of known pairs."""
        share = known_share(draft.text, self.known)
        return (
            Drop("outside the domain (n-gram proxy)", round(share, 4)) if share < self.config.proxy_threshold else None
        )


def known_grams(texts: Iterable[str]) -> Hashes:
    """Return the sorted hashes of the texts' pairs of words or characters."""
    parts = [ngram_hashes(text_hashes(units(text)), 2) for text in texts]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64)


def known_share(text: str, known: Hashes) -> float:
    """Return the share of a text's pairs that are known, 0 for a text without any."""
    grams = ngram_hashes(text_hashes(units(text)), 2)
    if not len(grams) or not len(known):
        return 0.0
    places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
    return float((known[places] == grams).mean())


@dataclass
class DomainBertScore:
    """The rule with an embedding model, for many documents at once."""

    config: DomainConfig
    embed: Embed
    references: list[str]
    name: str = field(default="domain", init=False)
    _known: list[Tensor] = field(default_factory=list, init=False)

    def apply(self, drafts: Sequence[Draft]) -> list[Change | Drop | None]:
        """Return for each document the reason to drop it; the value is its best F1."""
        from deepseek.data.cooker.bertscore import bert_score

        if not self._known:
            self._known = self.embed(self.references)
        verdicts: list[Change | Drop | None] = []
        for start in range(0, len(drafts), 32):
            vectors = self.embed([draft.text for draft in drafts[start : start + 32]])
            for best in bert_score(vectors, self._known).f1.amax(dim=1).tolist():
                low = best < self.config.bertscore_threshold
                verdicts.append(Drop("outside the domain (BERTScore)", round(best, 4)) if low else None)
        return verdicts
