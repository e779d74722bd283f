"""A scheduler for tests that decides by lot: pages in any order, prompts in pieces of any size, any company."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deepseek.models.factory import build
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.plan import Runner, Sampled, Sampling, SequenceRun, StepPlan
from deepseek.yaml_source import read_yaml

TOYS = Path(__file__).parent / "toys"
GREEDY = Sampling(SamplingConfig(temperature=0))


def toy(name: str, **changes: Any) -> Any:
    """Return a small model with weights large enough that its answers differ."""
    torch.manual_seed(0)
    values = read_yaml(TOYS / f"{name}.yaml").value
    assert isinstance(values, dict)
    model = build({**values, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


class Text:
    """One sequence on its way: what it says so far, how much of it was computed, and its pages."""

    def __init__(self, number: int, prompt: Sequence[int], sampling: Sampling = GREEDY) -> None:
        self.number, self.history, self.sampling = number, list(prompt), sampling
        self.prompt, self.done, self.blocks = len(prompt), 0, list[int]()
        self.results: list[Sampled] = []

    @property
    def tokens(self) -> list[int]:
        return self.history[self.prompt :]

    def run(self, count: int, pages: list[int], block_size: int) -> SequenceRun:
        """Return the next `count` tokens' run, with pages taken from `pages`."""
        tokens, start = self.history[self.done : self.done + count], self.done
        self.done += len(tokens)
        while len(self.blocks) * block_size < self.done:
            self.blocks.append(pages.pop())
        last = self.done == len(self.history)
        return SequenceRun(self.number, tokens, start, list(self.blocks), self.history, self.sampling if last else None)

    def take(self, result: Sampled) -> None:
        self.results.append(result)
        assert result.error is None, result.error
        assert result.token is not None
        self.history.append(result.token)


def answer(
    runner: Runner, texts: Sequence[Text], count: int, chance: random.Random | None = None
) -> Mapping[int, list[int]]:
    """Let every text have `count` tokens; by lot who is in a step and in which pieces, without `chance` all at once."""
    pages = list(range(runner.num_blocks))
    if chance:
        chance.shuffle(pages)
    waiting = list(texts)
    while waiting:
        chosen = [text for text in waiting if chance is None or chance.random() < 0.7] or waiting[:1]
        runs = [
            text.run(chance.randint(1, 5) if chance else len(text.history), pages, runner.block_size) for text in chosen
        ]
        if chance:
            chance.shuffle(runs)
        by_number = {text.number: text for text in chosen}
        for result in runner.run(StepPlan(tuple(runs))):
            by_number[result.sequence].take(result)
        for text in list(waiting):
            if len(text.tokens) >= count or (text.results and text.results[-1].finished):
                waiting.remove(text)
                pages += text.blocks
                runner.release(text.number)
    return {text.number: text.tokens for text in texts}
