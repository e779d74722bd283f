"""The files that the settings name, read once before a run: word list, evaluation sets, reference texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from deepseek.data.cooker.block import Kitchen
from deepseek.data.cooker.config import CookerConfig
from deepseek.data.cooker.rules.contamination import evaluation_grams, texts_in
from deepseek.data.cooker.rules.domain import known_grams
from deepseek.data.cooker.word_search import WordSearch
from deepseek.data.sources import source_files
from deepseek.errors import DataError

_MOST_BYTES = 1 << 28


def prepare_kitchen(config: CookerConfig) -> Kitchen:
    """Return what the rules need, but for the count of lines. Raises DataError for files that can't be read."""
    search = WordSearch(_word_list(Path(config.sensitive.words))) if config.sensitive.words else None
    against = config.contamination.against
    grams = evaluation_grams(against, config.contamination.n) if against else None
    domain = config.domain
    known = None
    if domain.references is not None and domain.method == "ngram_proxy":
        known = known_grams(_references(domain.references))
    return Kitchen(config, None, search, grams, known)


def reference_texts(source: str, most: int) -> list[str]:
    """Return the first `most` reference texts. Raises DataError where there is none."""
    texts = list(islice(_references(source), most))
    if not texts:
        raise DataError(f"{source} holds no reference text", wanted="JSON lines, or text with one a line")
    return texts


def used_files(config: CookerConfig) -> list[Path]:
    """Return every file that the settings name: a change of one makes it another run."""
    sources = [config.sensitive.words, *config.contamination.against, config.domain.references]
    files = [path for source in sources if source is not None for path in source_files(source)]
    if config.window.tokenizer is not None:
        path = Path(config.window.tokenizer)
        path = path / "tokenizer.json" if path.is_dir() else path
        files += [path] if path.is_file() else []
    return files


def _references(source: str) -> Iterator[str]:
    for path in source_files(source):
        yield from (text for text in texts_in(path) if text.strip())


def _word_list(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is too large for a word list", found=path.stat().st_size, wanted=_MOST_BYTES)
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the word list {path}", found=str(error), wanted="UTF-8, a word a line") from None
