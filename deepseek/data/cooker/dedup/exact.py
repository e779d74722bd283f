"""Equal texts: a 128-bit hash (BLAKE2b, RFC 7693) of the text after normalising.

Not here: texts that are nearly equal (`simhash`, `minhash`).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

HASH_BYTES = 16


@dataclass(frozen=True)
class Normalization:
    """What is taken to be the same text."""

    compatibility: bool = True
    """Unicode NFKC: full-width and half-width forms, ligatures, composed and decomposed letters."""
    case: bool = True
    """Case folding: capital and small letters."""
    white_space: bool = True
    """Runs of white space count as one space; none at the ends."""

    def __call__(self, text: str) -> str:
        """Return `text` normalised."""
        if self.compatibility and not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        if self.case:
            text = text.casefold()
            if self.compatibility and not text.isascii():
                text = unicodedata.normalize("NFKC", text)  # folding may leave letters decomposed
        return " ".join(text.split()) if self.white_space else text


def exact_hashes(texts: Iterable[str], normalization: Normalization | None = None) -> list[bytes]:
    """Return the 16-byte hash of each text. Lone surrogates are hashed as they are."""
    normal = Normalization() if normalization is None else normalization
    return [
        hashlib.blake2b(normal(text).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
        for text in texts
    ]
