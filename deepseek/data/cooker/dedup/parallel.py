"""Blocks of texts on all cores. Threads do: numpy lets go of the interpreter's lock inside its loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from deepseek.errors import ConfigError
from deepseek.hardware import physical_cores

T = TypeVar("T")
Item = TypeVar("Item")

_BLOCK_CHARACTERS = 1 << 23


def map_blocks(
    function: Callable[[Sequence[str]], T], texts: Sequence[str], workers: int | None, block: int = 4096
) -> list[T]:
    """Return `function` of each `block` of `texts`, in order, on `workers` threads (all cores where None).

    Long texts make smaller blocks: of 8 million characters, or of a single text.
    """
    return map_threads(function, _blocks(texts, block), workers)


def map_threads(function: Callable[[Item], T], items: Iterator[Item], workers: int | None) -> list[T]:
    """Return `function` of each item, in order. Raises ConfigError for a wrong number of workers."""
    count = physical_cores() if workers is None else workers
    if count < 1:
        raise ConfigError("the number of workers is out of range", found=workers, wanted="at least 1, or None")
    if count == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, items))


def _blocks(texts: Sequence[str], block: int) -> Iterator[Sequence[str]]:
    start = characters = 0
    for place, text in enumerate(texts):
        if place - start == block or (place > start and characters + len(text) > _BLOCK_CHARACTERS):
            yield texts[start:place]
            start, characters = place, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]
