"""Many texts: continuous batching against a padded batch, beginnings that are shared, the time to the first token.

The engine is stepped by hand, so that nothing but its own work is timed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.children.models_run import in_turns
from benchmarks.serve_llm_cases.shapes import Shape
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.engine import Done, Engine, EngineLimits, Event, Failed, Job
from deepseek.serve.text.plan import Runner
from deepseek.serve.text.runner import PagedRunner

SHARED, APART, ANSWER = 720, 80, 8
STREAMS, REQUESTS = 4, 24


class _Nothing:
    """A text that is not looked at."""

    def push(self, token_id: int, /) -> str:
        return "."

    def finish(self) -> str:
        return ""


class Source:
    """A model for the engine, without a tokenizer."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self._model, self._vocab_size = shape.ours(folder, "bf16"), shape.vocab_size

    def runner(self, limits: EngineLimits) -> Runner:
        """Return the runner with pages."""
        return PagedRunner(self._model, limits, self._vocab_size, torch.device("cpu"))

    def text_stream(self) -> _Nothing:
        """Return a decoder."""
        return _Nothing()


def job(prompt: list[int], new: int) -> Job:
    """Return a greedy request."""
    return Job(prompt, SamplingConfig(max_new_tokens=new, do_sample=False), stream=False)


def answer_all(engine: Engine, jobs: Sequence[Job]) -> list[Done]:
    """Submit all at once, step until all are done. Raises the first error."""
    done: list[Done] = []

    def sink(event: Event) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            done.append(event)

    for one in jobs:
        engine.submit([one], sink)
    while engine.step():
        pass
    if sum(found.tokens for found in done) != sum(one.sampling.max_new_tokens for one in jobs):
        raise RuntimeError("not every token came")
    return done


def mixed(shape: Shape, folder: Path, seconds: float) -> dict[str, Any]:
    """16 requests of prompts 16 to 256 and answers 16 to 128, ours and transformers' generate on them padded."""
    draw = random.Random(0)  # noqa: S311
    sizes = [(draw.randint(16, 256), draw.randint(16, 128)) for _ in range(16)]
    prompts = [shape.prompt(length, seed) for seed, (length, _) in enumerate(sizes)]
    jobs = [job(prompt, new) for prompt, (_, new) in zip(prompts, sizes, strict=True)]
    limits = EngineLimits(max_active=16, prefix_cache=False, kv_bytes=1 << 30, weights="bf16")
    engine, theirs = Engine(Source(shape, folder), limits), shape.theirs(folder, torch.bfloat16)
    width, longest = max(map(len, prompts)), max(new for _, new in sizes)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"max_new_tokens": longest, "min_new_tokens": longest, "do_sample": False, "pad_token_id": 0}

    def generate() -> None:
        with torch.inference_mode():
            theirs.generate(ids, attention_mask=mask, **settings)

    times = in_turns([lambda: answer_all(engine, jobs), generate], seconds)
    useful = sum(new for _, new in sizes)
    ours, peer = (useful * 1e3 / min(runs) for runs in times)
    return {"value": ours, "outputs": {"ratio": ours / peer, "peer": peer}, "details": {"milliseconds": times}}


def prefix(shape: Shape, folder: Path, seconds: float, shared: bool) -> dict[str, Any]:
    """Requests one after the other with 90% of the prompt in common, or nothing: with a prefix cache and without."""
    source, rounds = Source(shape, folder), [0]
    limits = EngineLimits(kv_bytes=1 << 30, weights="bf16")
    sides = [Engine(source, limits), Engine(source, limits.model_copy(update={"prefix_cache": False}))]
    beginning = shape.prompt(SHARED) if shared else []

    def ask(engine: Engine) -> None:
        rounds[0] += 1
        rest = shape.prompt(APART if shared else SHARED + APART, rounds[0])
        answer_all(engine, [job(beginning + rest, ANSWER)])

    times = in_turns([lambda: ask(sides[0]), lambda: ask(sides[1])], seconds)
    ours, peer = (1e3 / min(runs) for runs in times)
    return {"value": ours, "outputs": {"ratio": ours / peer, "peer": peer}, "details": {"milliseconds": times}}


def first_token(shape: Shape, folder: Path) -> dict[str, Any]:
    """Four clients that ask anew when they are answered: milliseconds to the first token, median and 9th tenth."""
    engine = Engine(Source(shape, folder), EngineLimits(prefix_cache=False, kv_bytes=1 << 30, weights="bf16"))
    answer_all(engine, [job(shape.prompt(64, 99), 4)])
    draw, found, asked = random.Random(1), list[float](), [0]  # noqa: S311

    def ask() -> None:
        asked[0] += 1
        engine.submit([job(shape.prompt(draw.randint(16, 128), asked[0]), draw.randint(16, 48))], sink)

    def sink(event: Event) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            found.append(event.first_token_seconds * 1e3)
            if asked[0] < REQUESTS:
                ask()

    for _ in range(STREAMS):
        ask()
    begin = time.perf_counter()
    while engine.step():
        pass
    tenths = statistics.quantiles(found, n=10)
    details = {"milliseconds": found, "seconds": time.perf_counter() - begin}
    return {"value": statistics.median(found), "outputs": {"p90": tenths[8]}, "details": details}
