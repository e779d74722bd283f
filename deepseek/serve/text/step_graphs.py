"""Steps in which every text gets one token, recorded once for a few sizes and played again from then on (CUDA graphs).

Launching the many small kernels of a decoding step takes a CPU longer than a GPU needs to run them; a recorded step is
one launch. A recording has fixed shapes and reads fixed memory: a step is padded to the next number of texts and of
pages, and its numbers are written where the recording reads them. Rows that stand for nobody write into a page that is
kept for them. Not here: what a step computes (see `runner`), prompts.
Source: NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs"; torch's `torch.cuda.graph`.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek.errors import ModelError
from deepseek.serve.text.paged_cache import Step
from deepseek.serve.text.plan import SequenceRun

Compute = Callable[[Tensor, Step], Tensor]
"""Takes ids (1, texts) and where they stand; returns the logits (texts, vocab_size) behind them. Shapes are fixed."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs and records a function without arguments; returns what does the same again on the same memory."""

_FEW_PAGES = 16
_WIDER = 4

_LOOKS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
}
_COPIES = {"_to_copy", "copy_"}


class StepGraphs:
    """Recordings of `compute` for up to `texts` texts of up to `max_length` tokens."""

    def __init__(
        self,
        compute: Compute,
        capture: Capture,
        *,
        texts: int,
        max_length: int,
        block_size: int,
        spare_page: int,
        device: torch.device,
    ) -> None:
        """`spare_page` comes after those of the texts; rows that stand for nobody use it."""
        self._compute, self._capture = compute, capture
        self._size, self._spare, self._max_length = block_size, spare_page, max_length
        self._texts = text_sizes(texts)
        self._pages = page_sizes(-(-max_length // block_size))
        self._numbers = torch.zeros(texts * (4 + self._pages[-1]), dtype=torch.int64, device=device)
        self._logits = torch.empty(0, device=device)
        self._replays: dict[tuple[int, int], Callable[[], None]] = {}

    @torch.inference_mode()
    def record(self) -> None:
        """Record the sizes that may be read at once, the largest first: smaller ones find memory in what it needed.

        Raises what a model raises that can't be recorded.
        """
        texts, pages = self._texts[-1], self._pages[0]
        self._write([], texts, pages)  # texts of one token in the spare page
        self._logits = torch.empty_like(self._compute(*self._inputs(texts, pages)))
        for size in itertools.product(reversed(self._texts), reversed(self._pages)):
            if readable_at_once(*size, self._spare):
                self._write([], *size)
                self._replays[size] = self._capture(self._recorded(*size))

    def takes(self, runs: Sequence[SequenceRun]) -> bool:
        """Return whether a step is one of those recorded: one token of each text, and the next one wanted."""
        single = all(len(run.tokens) == 1 and run.sampling is not None for run in runs)
        longest = max(run.start for run in runs)
        fits = single and len(runs) <= self._texts[-1] and longest < self._max_length
        return fits and self._padded(len(runs), longest) in self._replays

    def logits(self, runs: Sequence[SequenceRun]) -> Tensor:
        """Compute a step; return the logits (runs, vocab_size), which stand until the next step."""
        size = self._padded(len(runs), max(run.start for run in runs))
        self._write(runs, *size)
        self._replays[size]()
        return self._logits[: len(runs)]

    def _padded(self, texts: int, longest: int) -> tuple[int, int]:
        """Return the next size for so many texts, of which the longest gets a token at position `longest`."""
        pages = longest // self._size + 1
        return self._texts[bisect_left(self._texts, texts)], self._pages[bisect_left(self._pages, pages)]

    def _recorded(self, texts: int, pages: int) -> Callable[[], None]:
        inputs, logits = self._inputs(texts, pages), self._logits[:texts]

        def step() -> None:
            logits.copy_(self._compute(*inputs))

        return step

    def _inputs(self, texts: int, pages: int) -> tuple[Tensor, Step]:
        """Return the ids (1, texts) and the places, as views of the numbers that `_write` writes."""
        parts = self._numbers[: texts * (4 + pages)].split_with_sizes([texts] * 4 + [texts * pages])
        ids, positions, slots, lengths, table = parts
        starts = torch.arange(texts + 1, dtype=torch.int32, device=ids.device)
        # the lengths that count are on the device and differ from step to step; `takes` has looked at them
        return ids[None], Step(positions, slots, table.view(texts, pages), starts, lengths, longest=1, single=True)

    def _write(self, runs: Sequence[SequenceRun], texts: int, pages: int) -> None:
        """Write a step's numbers, padded, with one copy to the device."""
        size, spare, nobody = self._size, self._spare, range(texts - len(runs))
        numbers = [run.tokens[0] for run in runs] + [0 for _ in nobody]
        numbers += [run.start for run in runs] + [0 for _ in nobody]
        numbers += [run.blocks[run.start // size] * size + run.start % size for run in runs]
        numbers += [spare * size for _ in nobody]
        numbers += [run.start + 1 for run in runs] + [1 for _ in nobody]
        for run in runs:
            own = run.blocks[: run.start // size + 1]
            numbers += [*own, *[spare] * (pages - len(own))]
        numbers += [spare] * (pages * len(nobody))
        self._numbers[: len(numbers)].copy_(torch.tensor(numbers))


class FixedStep(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch left its base untyped
    """Refuses what a recording can't hold, while this thread computes within it, with ModelError.

    That is: numbers read from the device, sizes that follow from numbers, copies from one device to another. A
    recording that fails on them would leave torch's memory in disorder.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation of torch, unless it is one of those."""
        name = func.overloadpacket.__name__
        found = func(*args, **(kwargs or {}))
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        if (
            name in _LOOKS
            or any(one is not None and one.dtype == torch.bool for one in chosen)
            or (name in _COPIES and len({one.device for one in (*args, found) if isinstance(one, Tensor)}) > 1)
        ):
            raise ModelError("a step that looks at numbers can't be recorded", found=name)
        return found


class CudaCapture:
    """Records on a CUDA device; all recordings share memory, as no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run `step` once as it is, so that libraries are set up, then record it. Raises ModelError, RuntimeError."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            make_stream: Any = torch.cuda.Stream  # torch's annotation lacks it
            stream = make_stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), FixedStep():  # type: ignore[no-untyped-call]
                step()
            torch.cuda.current_stream().wait_stream(stream)
            # other models may be answering on other threads meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                step()

        def replay() -> None:
            graph.replay()

        return replay


def readable_at_once(texts: int, pages: int, num_blocks: int) -> bool:
    """Return whether so many pages of each text may be copied side by side: never more than a layer's pages are."""
    return texts * pages <= num_blocks


def text_sizes(most: int) -> list[int]:
    """Return the numbers of texts to record: the powers of 2 below `most`, and `most`."""
    return [1 << bits for bits in range((most - 1).bit_length())] + [most]


def page_sizes(most: int) -> list[int]:
    """Return the numbers of pages to record, so that short texts don't read as much as the longest."""
    sizes = itertools.takewhile(lambda pages: pages < most, (_FEW_PAGES * _WIDER**step for step in itertools.count()))
    return [*sizes, most]
