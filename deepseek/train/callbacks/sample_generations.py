"""What a language model writes as it learns: answers to a few prompts, every n steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.checkpoint.training_state import random_state, restore_random_state
from deepseek.data import Tokenizer
from deepseek.errors import ConfigError
from deepseek.models.generation import SamplingConfig, stream_tokens
from deepseek.train.callbacks.callback import Callback
from deepseek.train.callbacks.ema import averaged_weights
from deepseek.train.metrics_log import JsonLines, tensorboard_writer

if TYPE_CHECKING:
    from deepseek.train.run_state import RunState

logger = logging.getLogger("deepseek.train")


class SampleGenerations(Callback):
    """Continues each of `prompts` every `every` steps, with the averaged weights where an EMA is among the callbacks.

    The texts go to `samples.jsonl` in the run's folder (step, prompt, text) and to TensorBoard where the run writes it;
    without a folder, into the log. `tokenizer` defaults to the one in the run's folder. `sampling` are the fields of
    `SamplingConfig`; by default the likeliest tokens, up to the tokenizer's end token. Random numbers and the model's
    mode are left as they were: the run with samples takes the same steps as the one without.
    Raises ConfigError before the first step for prompts that are empty or do not fit the model.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        tokenizer: Tokenizer | None = None,
        every: int = 500,
        max_new_tokens: int = 32,
        **sampling: Any,
    ) -> None:
        if isinstance(prompts, str) or not prompts or not all(isinstance(text, str) and text for text in prompts):
            raise ConfigError("SampleGenerations needs prompts", found=repr(prompts)[:80], wanted="a list of texts")
        if every < 1:
            raise ConfigError("SampleGenerations' every is wrong", found=every, wanted="at least 1 step")
        self.prompts = list(prompts)
        self.tokenizer = tokenizer
        self.every = every
        self.sampling = SamplingConfig(**{"do_sample": False, "seed": 0, "max_new_tokens": max_new_tokens, **sampling})
        self._ids: list[list[int]] = []
        self._lines: JsonLines | None = None
        self._writer: Any = None

    def on_train_begin(self, state: RunState) -> None:
        tokenizer = self.tokenizer = self.tokenizer or _tokenizer_of(state.output_dir)
        self._ids = [tokenizer.encode(prompt) for prompt in self.prompts]
        limit = getattr(getattr(state.model, "config", None), "max_length", None)
        longest = max(map(len, self._ids)) + self.sampling.max_new_tokens
        if limit is not None and longest > limit:
            raise ConfigError(
                "a prompt and its answer are longer than the model's context",
                found=f"{longest} tokens",
                wanted=f"at most max_length = {limit}",
                fix="shorten the prompts or lower max_new_tokens",
            )
        if self.sampling.eos_id is None and "<|endoftext|>" in tokenizer.special_tokens:
            self.sampling = self.sampling.replace(eos_id=tokenizer.eos_id)
        if state.output_dir is not None:
            self._lines = JsonLines(state.output_dir / "samples.jsonl", state.step)
            if state.config.tensorboard:
                self._writer = tensorboard_writer(state.output_dir / "tensorboard" / "samples", state.step)

    def on_step_end(self, state: RunState) -> None:
        if state.step % self.every:
            return
        for prompt, text in zip(self.prompts, self._texts(state), strict=True):
            if self._lines is None:
                logger.info("step %d: %s -> %s", state.step, prompt, text)
            else:
                self._lines.write({"step": state.step, "prompt": prompt, "text": text})
            if self._writer is not None:
                self._writer.add_text(prompt, text, state.step)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._writer is not None:
            self._writer.close()
        self._lines = self._writer = None

    def _texts(self, state: RunState) -> list[str]:
        tokenizer, model = self.tokenizer, state.model
        if tokenizer is None:
            return []
        before, was_training = random_state(), model.training
        model.eval()
        try:
            with averaged_weights(self.peers):
                return [tokenizer.decode(stream_tokens(model, ids, self.sampling)) for ids in self._ids]
        finally:
            model.train(was_training)
            restore_random_state(before)


def _tokenizer_of(folder: Path | None) -> Tokenizer:
    path = folder / "tokenizer.json" if folder is not None else None
    if path is None or not path.is_file():
        raise ConfigError("SampleGenerations needs a tokenizer", fix="SampleGenerations(prompts, tokenizer)")
    return Tokenizer.load(path)
