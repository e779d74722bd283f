"""One text at a time: our runner against transformers' generate, and against llama.cpp at equal bits.

Both sides read a prompt of 16 tokens and add greedy tokens, in turns in one process; the figure is tokens a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.children.models_run import in_turns
from benchmarks.serve_llm_cases.shapes import Shape, relative_gap
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.limits import EngineLimits
from deepseek.serve.text.plan import Sampling, SequenceRun, StepPlan
from deepseek.serve.text.runner import PagedRunner
from deepseek.serve.text.weights import WeightForm

PROMPT, NEW = 16, 64


class OurStream:
    """Greedy tokens from our runner, one step each."""

    def __init__(self, shape: Shape, folder: Path, form: WeightForm) -> None:
        self.model: Any = shape.ours(folder, form)
        limits = EngineLimits(kv_bytes=64 << 20)
        self._runner = PagedRunner(self.model, limits, shape.vocab_size, torch.device("cpu"))
        self._pages = list(range(-(-(PROMPT + NEW) // limits.block_size)))

    def __call__(self, prompt: Sequence[int], new: int) -> list[int]:
        """Return `new` tokens that follow `prompt`."""
        sampling = Sampling(SamplingConfig(max_new_tokens=new, do_sample=False))
        history, start = list(prompt), 0
        for _ in range(new):
            run = SequenceRun(0, history[start:], start, self._pages, history, sampling)
            start = len(history)
            (found,) = self._runner.run(StepPlan((run,)))
            if found.token is None:
                raise RuntimeError(f"no token: {found.error}")
            history.append(found.token)
        self._runner.release(0)
        return history[len(prompt) :]

    def logits(self, prompt: Sequence[int]) -> Tensor:
        """Return fp32 logits (time, vocab_size)."""
        with torch.inference_mode():
            found: Tensor = self.model(torch.tensor([list(prompt)]))[0]
        return found.float()


def against_hf(shape: Shape, folder: Path, seconds: float) -> dict[str, Any]:
    """Ours in bf16 against generate in bf16; both held against transformers' logits in fp32."""
    prompt = shape.prompt(PROMPT)
    ids = torch.tensor([prompt])
    theirs, ours = shape.theirs(folder, torch.bfloat16), OurStream(shape, folder, "bf16")
    reference = exact_logits(shape, folder, prompt)
    with torch.inference_mode():
        their_gap = relative_gap(theirs(ids).logits[0].float(), reference)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def generate() -> None:
        with torch.inference_mode():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    return told([lambda: ours(prompt, NEW), generate], seconds, relative_gap(ours.logits(prompt), reference), their_gap)


def against_llama_cpp(shape: Shape, folder: Path, bits: str, seconds: float) -> dict[str, Any]:
    """Ours against llama.cpp, both with weights of 16, 8 or 4 bits."""
    from benchmarks.serve_llm_cases.llama_cpp import FORMS, LlamaCpp, write_gguf

    form, kind = FORMS[bits]
    path = folder / f"{bits}.gguf"
    write_gguf(shape, folder, path, kind)
    prompt = shape.prompt(PROMPT)
    ours, theirs = OurStream(shape, folder, form), LlamaCpp(path, PROMPT + NEW, torch.get_num_threads())
    reference = exact_logits(shape, folder, prompt)[-1]
    their_gap = relative_gap(torch.from_numpy(theirs.logits(prompt)), reference)
    found = told(
        [lambda: ours(prompt, NEW), lambda: theirs(prompt, NEW)],
        seconds,
        relative_gap(ours.logits(prompt)[-1], reference),
        their_gap,
    )
    path.unlink()
    return found


def exact_logits(shape: Shape, folder: Path, prompt: Sequence[int]) -> Tensor:
    """Return transformers' logits in fp32, (time, vocab_size)."""
    model = shape.theirs(folder, torch.float32)
    with torch.inference_mode():
        found: Tensor = model(torch.tensor([list(prompt)])).logits[0]
    return found


def told(sides: list[Callable[[], object]], seconds: float, our_gap: float, their_gap: float) -> dict[str, Any]:
    """Time both sides in turns; the ratio is that of their quickest runs, which other programs disturb least."""
    times = in_turns(sides, seconds)
    ours, theirs = (NEW * 1e3 / min(runs) for runs in times)
    outputs = {"ratio": ours / theirs, "our_gap": our_gap, "their_gap": their_gap, "peer": theirs}
    return {"value": ours, "outputs": outputs, "details": {"milliseconds": times}}
