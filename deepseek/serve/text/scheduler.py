"""Who computes what in the next step: continuous batching over pages, without IO, without torch, without clocks.

Each step every running answer gets its next token; what is left of `max_batch_tokens` goes to prompts, in order of
arrival, in pieces where they are long. A sequence begins when there are pages for all it has, so only answers that grow
can run out of pages: then the youngest gives its pages up and begins again later (it computes what it had, minus pages
that are still there). The oldest that has pages is never held up, so everything ends. A text whose beginning another
one computes in this very step waits for it and shares its pages; only meanwhile may younger ones pass, and they leave
it the pages that it needs.
Not here: deadlines and cancellation (see `engine`), which only take sequences away.
Sources: Yu et al. 2022 (Orca, continuous batching), OSDI; Kwon et al. 2023 (PagedAttention), arXiv:2309.06180;
Agrawal et al. 2024 (Sarathi-Serve, chunked prefill), arXiv:2403.02310.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from deepseek.serve.text.blocks import BlockPool
from deepseek.serve.text.plan import SequenceRun, StepPlan
from deepseek.serve.text.prefix import Found, PrefixIndex
from deepseek.serve.text.sequence import TextSequence

MOST_DEFERRED = 8
"""Sequences that may wait in one step for pages that others compute in it; the rest of the queue waits behind them."""

_BY_NUMBER = attrgetter("number")


class SchedulerLimits(NamedTuple):
    """The pages there are, and how much is done side by side."""

    num_blocks: int
    block_size: int
    max_active: int
    max_batch_tokens: int


class Scheduler:
    """Plans steps. One thread: `plan`, then `commit` or `abandon`; `add` and `remove` in between."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._most_running = min(limits.max_active, limits.max_batch_tokens)
        self.prefix = PrefixIndex(limits.num_blocks, limits.block_size)
        self.pool = BlockPool(limits.num_blocks, self.prefix.forget)
        self._waiting: OrderedDict[int, TextSequence] = OrderedDict()
        self._preempted: list[TextSequence] = []
        self._running: list[TextSequence] = []  # as _preempted, in order of arrival
        self._planned: list[tuple[TextSequence, int]] = []
        self._refused = (-1, 0)  # the sequence that last found too few pages, and how many there were
        self.preemptions = 0
        self.cached_tokens = 0

    @property
    def waiting(self) -> int:
        """Sequences that have not begun."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Sequences that have begun, also those without pages at the moment."""
        return len(self._running) + len(self._preempted)

    def root(self, salt: Hashable) -> Hashable:
        """Return what a sequence needs to share pages with those of the same salt."""
        return self.prefix.root(salt)

    def add(self, sequence: TextSequence) -> None:
        """Let a sequence wait for its turn. Its numbers must rise, and it must fit the pages when it is alone."""
        self._waiting[sequence.number] = sequence

    def remove(self, sequence: TextSequence, *, damaged: bool = False) -> None:
        """Take a sequence away and free its pages; of a `damaged` one none is kept that nobody else holds."""
        if self._waiting.pop(sequence.number, None) is None:
            (self._running if sequence in self._running else self._preempted).remove(sequence)
        self._release(sequence, damaged=damaged)

    def plan(self) -> StepPlan:
        """Return what to compute next; without runs only when there is nothing to do."""
        self._planned = []
        runs: list[SequenceRun] = []
        running = self._running
        budget = self.limits.max_batch_tokens - sum(sequence.pending == 1 for sequence in running)
        index = 0
        while index < len(running):
            sequence = running[index]
            count = 1
            if sequence.pending > 1:
                count = min(sequence.pending, budget)
                budget -= count
            if self._make_room(sequence, count):
                index += 1
                if count:
                    runs.append(self._run(sequence, count))
        self._admit(runs, budget)
        return StepPlan(tuple(runs))

    def commit(self) -> list[TextSequence]:
        """Tell that the step was computed; return the sequences that are to get a token, in the order of the plan."""
        self.prefix.settle()
        ready = []
        for sequence, count in self._planned:
            sequence.computed += count
            if sequence.computed == len(sequence.history):
                ready.append(sequence)
        return ready

    def abandon(self) -> list[TextSequence]:
        """Tell that the step failed; return its sequences, which are taken away."""
        self.prefix.abandon()
        failed = [sequence for sequence, _ in self._planned]
        for sequence in failed:
            self.remove(sequence, damaged=True)
        return failed

    def _run(self, sequence: TextSequence, count: int) -> SequenceRun:
        start, history = sequence.computed, sequence.history
        end = start + count
        self._planned.append((sequence, count))
        if sequence.chain is not None:
            self._publish(sequence, end)
        tokens = history[start:end]
        sampling = sequence.sampling if end == len(history) else None
        return SequenceRun(sequence.number, tokens, start, sequence.blocks, history, sampling)

    def _publish(self, sequence: TextSequence, end: int) -> None:
        """Tell the index of the pages that are full after this step."""
        size = self.limits.block_size
        while (sequence.published + 1) * size <= end:
            page = sequence.published
            tokens = sequence.history[page * size : (page + 1) * size]
            sequence.chain = self.prefix.add(sequence.chain, tokens, sequence.blocks[page])
            sequence.published += 1

    def _make_room(self, sequence: TextSequence, count: int) -> bool:
        """Have pages for `count` more tokens, taken from the youngest where none is left; False if that was itself."""
        while sequence.computed + count > len(sequence.blocks) * self.limits.block_size:
            if self.pool.available:
                sequence.blocks.append(self.pool.take())
                continue
            victim = self._running.pop()
            self._release(victim)
            insort(self._preempted, victim, key=_BY_NUMBER)
            self.preemptions += 1
            if victim is sequence:
                return False
        return True

    def _admit(self, runs: list[SequenceRun], budget: int) -> None:
        admitted: list[TextSequence] = []
        deferred = reserved = 0
        for sequence in chain(self._preempted, self._waiting.values()):
            if budget <= 0 or len(self._running) + len(admitted) >= self._most_running or deferred >= MOST_DEFERRED:
                break
            if sequence.number == self._refused[0] and self.pool.available <= self._refused[1]:
                break
            found = Found([], None, False)
            if sequence.root is not None:  # the last token is always computed: its logits are wanted
                found = self.prefix.find(sequence.history, len(sequence.history) - 1, sequence.root)
            if found.pending:
                deferred += 1
                reserved += self._pages(sequence) - len(found.blocks)
                continue
            spare = len(self._running) + len(admitted) + reserved  # a page for each to grow by
            if not self._take_pages(sequence, found, spare):
                self._refused = sequence.number, self.pool.available
                break
            count = min(sequence.pending, budget)
            budget -= count
            admitted.append(sequence)
            runs.append(self._run(sequence, count))
        for sequence in admitted:
            if self._waiting.pop(sequence.number, None) is None:
                self._preempted.remove(sequence)
            insort(self._running, sequence, key=_BY_NUMBER)

    def _take_pages(self, sequence: TextSequence, found: Found, spare: int) -> bool:
        """Give a sequence the pages for all it has, found ones first; False where fewer than `spare` would be left."""
        wanted = self._pages(sequence) - len(found.blocks)
        idle = sum(self.pool.holders(block) == 0 for block in found.blocks)
        if self.pool.available - idle - wanted < spare:
            return False
        for block in found.blocks:
            self.pool.share(block)
        sequence.blocks = found.blocks + [self.pool.take() for _ in range(wanted)]
        sequence.published = len(found.blocks)
        sequence.computed = sequence.published * self.limits.block_size
        sequence.chain = found.chain
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.cached_tokens += sequence.computed
        return True

    def _pages(self, sequence: TextSequence) -> int:
        """Return the pages that all tokens of a sequence take."""
        return -(-len(sequence.history) // self.limits.block_size)

    def _release(self, sequence: TextSequence, *, damaged: bool = False) -> None:
        """Free the pages, last one first: the end of a text is given away before its beginning."""
        for block in reversed(sequence.clear()):
            if damaged and self.pool.holders(block) == 1:
                self.prefix.forget(block)
            self.pool.release(block, keep=block in self.prefix)
