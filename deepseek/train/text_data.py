"""Text files to training batches: tokenizer, token cache, packed sequences, loaders, and the facts for the report."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deepseek.data import Loader, PackedDataset, ReadReport, TokenCache, Tokenizer, build_token_cache, read_documents
from deepseek.errors import TokenizerError

logger = logging.getLogger("deepseek.train")


class TextSource(NamedTuple):
    """Where text comes from and how it is cut."""

    train: str | Path
    val: str | Path | None
    max_length: int
    batch_size: int
    seed: int
    val_fraction: float
    isolate_documents: bool
    on_error: Literal["raise", "skip"]


@dataclass
class TextData:
    """Text ready for training."""

    tokenizer: Tokenizer
    train: Loader
    val: Loader | None
    train_cache: TokenCache
    facts: dict[str, Any]


def prepare_text(source: TextSource, tokenizer: Tokenizer) -> TextData:
    """Tokenize (once; later runs find the cache), pack and split. Raises DataError or TokenizerError."""
    folder = cache_folder()
    cache = build_token_cache(source.train, tokenizer, folder, on_error=source.on_error)
    fraction = source.val_fraction if source.val is None else 0.0

    def dataset(cache: TokenCache, split: Literal["train", "val"], fraction: float) -> PackedDataset:
        return PackedDataset(
            cache,
            source.max_length,
            isolate_documents=source.isolate_documents,
            seed=source.seed,
            split=split,
            val_fraction=fraction,
        )

    train = dataset(cache, "train", fraction)
    val = None
    if source.val is not None:
        val = dataset(build_token_cache(source.val, tokenizer, folder, on_error=source.on_error), "train", 0.0)
    elif fraction > 0:
        val = dataset(cache, "val", fraction)
    report: ReadReport = cache.report
    facts = {
        "source": str(source.train),
        "documents": cache.num_documents,
        "skipped": report.skipped,
        "characters": report.characters,
        "train_tokens": train.num_tokens,
        "val_tokens": val.num_tokens if val is not None else 0,
        "vocab_size": tokenizer.vocab_size,
    }
    if report.skipped:
        logger.warning("skipped %d corrupt records, for example %s", report.skipped, "; ".join(report.examples[:3]))
    return TextData(
        tokenizer,
        Loader(train, source.batch_size, seed=source.seed),
        Loader(val, source.batch_size, seed=source.seed, shuffle=False, drop_last=False) if val is not None else None,
        cache,
        facts,
    )


def train_tokenizer(
    path: str | Path, vocab_size: int, *, on_error: Literal["raise", "skip"], allow_smaller: bool
) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the text at `path`.

    Raises TokenizerError where the text can't give `vocab_size` tokens, unless `allow_smaller`: then the largest
    vocabulary is used and a warning names it.
    """
    tokenizer = Tokenizer.train(_texts(path, on_error), vocab_size, allow_smaller=allow_smaller)
    if tokenizer.vocab_size < vocab_size:
        logger.warning(
            "the text gives %d tokens, not %d; the model's other rows are never used (set vocab_size: %d)",
            tokenizer.vocab_size,
            vocab_size,
            tokenizer.vocab_size,
        )
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise TokenizerError if the tokenizer has tokens that the model does not know."""
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            "the tokenizer has more tokens than the model",
            found=f"{tokenizer.vocab_size} tokens, vocab_size {vocab_size}",
            fix=f"set the model's vocab_size to {tokenizer.vocab_size}",
        )


def cache_folder() -> Path:
    """Return where token caches live: $DEEPSEEK_CACHE, else the user's cache folder, else a temporary one."""
    named = os.environ.get("DEEPSEEK_CACHE")
    if named:
        return Path(named)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepseek" / "tokens"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    fallback = Path(tempfile.gettempdir()) / "deepseek-tokens"
    logger.warning("%s can't be written; caching tokens in %s", folder, fallback)
    return fallback


def _texts(path: str | Path, on_error: Literal["raise", "skip"]) -> Iterator[str]:
    for document in read_documents(path, on_error=on_error):
        if document.messages is None:
            yield document.text
        else:
            for message in document.messages:
                yield message.content
