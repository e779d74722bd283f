"""Computes steps of the scheduler with pages: the tokens of all texts in one forward pass, then one sampling.

Pieces of prompts and single tokens of running answers are one row of tokens for the model; the output layer is asked
for the last token of those texts alone that want a next one. Not here: what is computed when (`scheduler`), models
whose cache has no pages (`past_runner`).
Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI 2022
(selective batching).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepseek.hardware import keep_freed_memory
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.decoder import row_decoder
from deepseek.serve.text.paged_cache import PagedCache, Step, count_blocks, page_shapes
from deepseek.serve.text.plan import Sampled, Sampling, SequenceRun, StepPlan
from deepseek.serve.text.sampler import Sampler
from deepseek.serve.text.step_graphs import Capture, CudaCapture, StepGraphs, readable_at_once

if TYPE_CHECKING:
    from deepseek.serve.text.limits import EngineLimits

_LOG = logging.getLogger("deepseek.serve")


class PagedRunner:
    """Runs one of our decoders (`GPT`, `Llama`, `DeepSeekMoE`) over pages. One thread calls it."""

    def __init__(
        self,
        model: Any,
        limits: EngineLimits,
        vocab_size: int,
        device: torch.device,
        capture: Capture | None = None,
    ) -> None:
        """`vocab_size`: tokens from here on are never chosen (the tokenizer does not know them).

        `capture` records steps of one token a text in `warm_up`; on CUDA that is `CudaCapture` where none is given.
        Raises ConfigError when the pages don't fit.
        """
        keep_freed_memory()  # a step asks for the same few pieces of memory again and again
        shapes = page_shapes(model, device)
        form = getattr(model.lm_head, "form", "fp32") if limits.weights == "auto" else limits.weights
        if form != "fp32":  # keys and values are rounded as well: they take half the memory
            shapes = [shape._replace(dtype=torch.bfloat16) for shape in shapes]
        per_token = sum(shape.bytes_per_token for shape in shapes)
        count = count_blocks(limits, per_token, model.config.max_length, device)
        self._model, self._device = model, device
        self._cache = PagedCache(shapes, count, limits.block_size, device)
        self._decoder = row_decoder(model, self._cache)
        self._sampler = Sampler(vocab_size)
        self._texts = limits.max_active
        self._capture = CudaCapture(device) if capture is None and device.type == "cuda" else capture
        self._num_blocks = count if self._capture is None or count == 1 else count - 1  # the last one is for nobody
        self._graphs: StepGraphs | None = None

    @property
    def block_size(self) -> int:
        """Tokens a page."""
        return self._cache.block_size

    @property
    def num_blocks(self) -> int:
        """Pages there are for texts."""
        return self._num_blocks

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Return one result for each run with `sampling`, in order. An error raised here fails all in the step."""
        wanted = [run for run in plan.runs if run.sampling is not None]
        with torch.inference_mode():
            logits = self.logits(plan)
            return self._sampler.sample(logits, wanted) if wanted else []

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> Tensor:
        """Compute a step; return the logits (runs with sampling, vocab_size) behind their last tokens.

        They stand until the next step.
        """
        if self._graphs is not None and self._graphs.takes(plan.runs):
            return self._graphs.logits(plan.runs)
        ids, step, last = self._places(plan.runs)
        if self._decoder is not None:
            self._cache.begin(step)
            return self._decoder.logits(ids, step, last)
        return self._computed(ids, step, last)

    def warm_up(self) -> None:
        """Read a few tokens and go on with one, so that the first request finds everything in place.

        It writes into the first page, which nobody has yet. Then steps of one token a text are recorded, where that is
        done at all and can be: else they are computed call by call, and a warning says so.
        """
        some = [0] * min(4, self.block_size - 1, self._model.config.max_length - 1)
        for start, tokens in ((0, some), (len(some), [0])):
            if tokens:
                run = SequenceRun(-1, tokens, start, [0], [*some, 0], Sampling(SamplingConfig(temperature=0)))
                self.run(StepPlan((run,)))
        self.release(-1)
        if self._capture is not None and self._num_blocks < self._cache.num_blocks:
            self._record(self._capture)

    def release(self, sequence: int) -> None:
        """Forget what is remembered of a sequence."""
        self._sampler.release(sequence)

    def _computed(self, ids: Tensor, step: Step, last: Tensor | None = None) -> Tensor:
        """Compute a step with the model itself; return the logits of the rows `last`, or of all."""
        self._cache.begin(step)
        features: Tensor = self._model.forward_features(ids, cache=self._cache)[0]
        logits: Tensor = self._model.lm_head(features if last is None else features.index_select(0, last))
        return logits

    def _record(self, capture: Capture) -> None:
        graphs = StepGraphs(
            self._computed,
            capture,
            texts=self._texts,
            max_length=self._model.config.max_length,
            block_size=self.block_size,
            spare_page=self._num_blocks,
            device=self._device,
        )
        try:
            graphs.record()
        except Exception as error:  # sizes that depend on numbers (experts), too little memory: it works without
            what, why = type(self._model).__name__, str(error).partition("\n")[0]
            _LOG.warning("steps of %s can't be recorded, so each is computed call by call: %s", what, why)
        else:
            self._graphs = graphs

    def _places(self, runs: Sequence[SequenceRun]) -> tuple[Tensor, Step, Tensor]:
        """Return the ids (1, tokens), where they stand, and the rows whose next token is wanted.

        All numbers travel to the device as two tensors; lists make them, as most steps have a handful of tokens.
        """
        size, ids, positions, slots = self.block_size, list[int](), list[int](), list[int]()
        starts, lengths, table, last = [0], list[int](), list[int](), list[int]()
        pages = max(len(run.blocks) for run in runs)
        for run in runs:
            where = range(run.start, run.start + len(run.tokens))
            ids += run.tokens
            positions += where
            slots += [run.blocks[place // size] * size + place % size for place in where]
            starts.append(len(ids))
            lengths.append(where.stop)
            table += [*run.blocks, *[0] * (pages - len(run.blocks))]
            if run.sampling is not None:
                last.append(len(ids) - 1)
        wide = torch.tensor(ids + positions + slots + last).to(self._device)
        small = torch.tensor(starts + lengths + table, dtype=torch.int32).to(self._device)
        total, texts = len(ids), len(runs)
        ids_, positions_, slots_, last_ = wide.split_with_sizes([total, total, total, len(last)])
        starts_, lengths_, table_ = small.split_with_sizes([texts + 1, texts, texts * pages])
        single = total == texts and not ids_.is_cpu and readable_at_once(texts, pages, self._num_blocks)
        step = Step(positions_, slots_, table_.view(texts, pages), starts_, lengths_, max(lengths), single)
        return ids_[None], step, last_
