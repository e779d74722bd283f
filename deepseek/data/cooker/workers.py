"""Blocks worked on by several processes, their results in the order of the blocks.

Workers are spawned, so the program's own script needs its `if __name__ == "__main__":`, as always with processes. A
worker whose program was killed ends by itself. With one worker everything happens in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

from deepseek.data.cooker.block import CookedBlock, Kitchen, Rule, cook_block, count_lines
from deepseek.data.cooker.hashing import Hashes
from deepseek.data.cooker.source import Block, Position, RawLine
from deepseek.errors import DataError

Result = TypeVar("Result")


class _Worker:
    """What a worker process holds: the kitchen and its rules."""

    kitchen: Kitchen
    rules: list[Rule]


def cook_all(blocks: Iterable[Block], kitchen: Kitchen, workers: int) -> Iterator[tuple[CookedBlock, Position]]:
    """Yield each block cooked, in order, with the place where the next begins."""
    yield from _in_order(_cook, blocks, kitchen, workers)


def count_all(
    blocks: Iterable[Block], kitchen: Kitchen, workers: int
) -> Iterator[tuple[tuple[list[Hashes], int], Position]]:
    """Yield each block's lines that may be boilerplate, in order."""
    yield from _in_order(_count, blocks, kitchen, workers)


def _cook(lines: list[RawLine]) -> CookedBlock:
    return cook_block(lines, _Worker.kitchen, _Worker.rules)


def _count(lines: list[RawLine]) -> tuple[list[Hashes], int]:
    return count_lines(lines, _Worker.kitchen)


def _prepare(kitchen: Kitchen) -> None:
    _Worker.kitchen = kitchen
    _Worker.rules = kitchen.rules()


def _start(kitchen: Kitchen) -> None:
    """Prepare a worker: interrupts are the parent's business, and without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _prepare(kitchen)


def _leave_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _in_order(
    work: Callable[[list[RawLine]], Result], blocks: Iterable[Block], kitchen: Kitchen, workers: int
) -> Iterator[tuple[Result, Position]]:
    if workers <= 1:
        _prepare(kitchen)
        for block in blocks:
            yield work(block.lines), block.next
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (kitchen,))
    waiting: deque[tuple[Future[Result], Position]] = deque()
    try:
        for block in blocks:
            waiting.append((pool.submit(work, block.lines), block.next))
            if len(waiting) > workers + 1:
                future, position = waiting.popleft()
                yield future.result(), position
        while waiting:
            future, position = waiting.popleft()
            yield future.result(), position
    except BrokenProcessPool:
        raise DataError(
            "a worker of the cooker died",
            found=f"one of {workers} processes ended without an answer, as when memory runs out",
            fix="run again, it goes on where it was; with fewer workers if memory is short",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
