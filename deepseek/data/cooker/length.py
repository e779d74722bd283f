"""How many tokens a text has: counted by a tokenizer, or estimated from its words and characters.

The estimate is 1.3 tokens a word and 0.75 a Chinese or Japanese character, and 0.5 for other signs; it says so wherever
it is used. Not here: what is done about the length (`rules.window`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.data.cooker.script import unspaced, words
from deepseek.errors import DataError

if TYPE_CHECKING:
    import tokenizers

TokenCounter = Callable[[Sequence[str]], list[int]]

_SIGN = re.compile(r"[^\w\s]")


def estimate_tokens(texts: Sequence[str]) -> list[int]:
    """Return an estimate of each text's tokens, rounded up: parts of a text together never have fewer."""
    return [math.ceil(1.3 * len(words(t)) + 0.75 * unspaced(t) + 0.5 * len(_SIGN.findall(t))) for t in texts]


def token_counter(tokenizer: str | None) -> TokenCounter:
    """Return the counter of a tokenizer.json or a folder that has one, or the estimate for None.

    Raises DataError for a file that is no tokenizer.
    """
    if tokenizer is None:
        return estimate_tokens
    library = load_tokenizer(Path(tokenizer))

    def count(texts: Sequence[str]) -> list[int]:
        safe = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [len(encoded) for encoded in library.encode_batch(safe, add_special_tokens=False)]

    return count


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer in a tokenizer.json or a folder that has one, without cutting and padding.

    Raises DataError for a file that is no tokenizer.
    """
    import tokenizers

    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist", wanted="a tokenizer.json or a folder with one")
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise DataError(f"{path} is no tokenizer", found=str(error)[:200], wanted="a tokenizer.json") from None
    library.no_truncation()
    library.no_padding()
    return library
