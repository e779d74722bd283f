"""Text out of a language model, token by token: sampling settings, logit rules, streaming and batched generation.

The order of the rules is that of transformers: repetition penalty, the caller's logits processors, temperature,
top-k, top-p. Not here: text (`data.tokenizer`), scheduling of many requests (`serve.engine`).
Sources: Keskar et al. 2019 (repetition penalty), arXiv:1909.05858; Holtzman et al. 2020 (top-p), arXiv:1904.09751.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from deepseek.config import Config
from deepseek.errors import ModelError

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""Takes ids so far (batch, time) and logits (batch, vocab_size), returns changed logits; transformers' fit."""


class SamplingConfig(Config):
    """How the next token is chosen."""

    max_new_tokens: int = Field(default=128, ge=1, le=1 << 20)
    """Most tokens to add."""
    do_sample: bool = True
    """False takes the likeliest token each time."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = Field(default=0, ge=0, le=1 << 24)
    """Sample from this many likeliest tokens only; 0 is all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of likeliest tokens whose probabilities reach this sum."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    """Above 1 makes tokens that occurred already less likely."""
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Same seed, same text; null draws a new one."""
    eos_id: int | None = Field(default=None, ge=0)
    """Generation ends after this token."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return not self.do_sample or self.temperature == 0


@runtime_checkable
class CausalLanguageModel(Protocol):
    """What generation needs of a model."""

    def __call__(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: Any = None) -> Tensor:
        """Return logits (batch, time, vocab_size)."""
        ...

    def new_cache(self, batch_size: int, capacity: int) -> Any:
        """Return an empty cache, of the model's own kind."""
        ...


def penalize_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits (batch, vocab_size) of the tokens in `ids` by `penalty`."""
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row to -inf; ties with the k-th stay."""
    limit = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < limit, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep of each row the smallest set of largest logits whose probabilities reach `p`; at least one."""
    ordered, order = logits.sort(dim=-1)
    outside = ordered.softmax(-1).cumsum(-1) <= 1 - p
    outside[:, -1] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)


def next_token(
    logits: Tensor,
    ids: Tensor,
    sampling: SamplingConfig,
    generator: torch.Generator | None,
    processors: Iterable[LogitsProcessor] = (),
) -> Tensor:
    """Choose a token for each row: logits (batch, vocab_size), ids so far (batch, time) -> (batch,) of int64."""
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, ids, sampling.repetition_penalty)
    for processor in processors:
        logits = processor(ids, logits)
    if sampling.greedy:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def stream_ids(
    model: CausalLanguageModel,
    input_ids: Tensor,
    sampling: SamplingConfig,
    processors: Iterable[LogitsProcessor] = (),
) -> Iterator[Tensor]:
    """Yield the next token of each row (batch,), up to `max_new_tokens` times; rows are texts of one length.

    Ends when every row has met `eos_id`. Closing the generator frees the cache.
    """
    processors = list(processors)
    generator = None
    if not sampling.greedy:
        generator = torch.Generator(input_ids.device)
        generator.manual_seed(sampling.seed) if sampling.seed is not None else generator.seed()
    cache = model.new_cache(input_ids.shape[0], input_ids.shape[1] + sampling.max_new_tokens)
    ids, fresh = input_ids, input_ids
    ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    for _ in range(sampling.max_new_tokens):
        with torch.inference_mode():
            logits = model(fresh, cache=cache)[:, -1]
            token = next_token(logits, ids, sampling, generator, processors)
            if sampling.eos_id is not None:
                token = token.masked_fill(ended, sampling.eos_id)
                ended = ended | (token == sampling.eos_id)
            fresh = token[:, None]
            ids = torch.cat([ids, fresh], dim=1)
        yield token
        if sampling.eos_id is not None and bool(ended.all()):
            return


def stream_tokens(model: torch.nn.Module, prompt_ids: list[int], sampling: SamplingConfig) -> Iterator[int]:
    """Yield new token ids one by one, `eos_id` included; closing the iterator frees its cache.

    Raises ModelError at once when prompt and answer do not fit the model, the prompt is empty, or an id is unknown.
    """
    device = next(iter(model.state_dict().values())).device
    input_ids = torch.tensor([prompt_ids], dtype=torch.int64, device=device)
    language_model = _checked(model, input_ids, sampling)
    return (int(token) for token in stream_ids(language_model, input_ids, sampling))


def _checked(model: object, input_ids: Tensor, sampling: SamplingConfig) -> CausalLanguageModel:
    if not isinstance(model, CausalLanguageModel):
        raise ModelError("the model can't generate text", found=type(model).__name__, wanted="a causal language model")
    if input_ids.dim() != 2:
        raise ModelError("input_ids has the wrong shape", found=tuple(input_ids.shape), wanted="(batch, time)")
    if input_ids.numel() == 0:
        raise ModelError("the prompt is empty", wanted="at least one token", fix="begin with the tokenizer's eos_id")
    prompt_length, config = input_ids.shape[1], getattr(model, "config", None)
    vocab_size, limit = getattr(config, "vocab_size", None), getattr(config, "max_length", None)
    if vocab_size is not None and not (0 <= int(input_ids.min()) and int(input_ids.max()) < vocab_size):
        raise ModelError(
            "the prompt has a token the model does not know",
            found=f"ids {int(input_ids.min())} to {int(input_ids.max())}",
            wanted=f"0 to {vocab_size - 1}",
            fix="use the tokenizer the model was trained with",
        )
    if limit is not None and prompt_length + sampling.max_new_tokens > limit:
        raise ModelError(
            "prompt and answer are longer than the model's context",
            found=f"{prompt_length} + {sampling.max_new_tokens} tokens",
            wanted=f"at most max_length = {limit} together",
            fix="shorten the prompt or lower max_new_tokens",
        )
    return model


class GenerationMixin:
    """Gives a causal language model `generate`, with the argument names of transformers."""

    def generate(
        self,
        input_ids: Tensor,
        *,
        logits_processor: Iterable[LogitsProcessor] | None = None,
        max_length: int | None = None,
        **settings: object,
    ) -> Tensor:
        """Return `input_ids` (batch, time) with the new tokens behind: (batch, time + new).

        `settings` are the fields of SamplingConfig (`do_sample`, `top_k`, `top_p`, `temperature`, `repetition_penalty`,
        `max_new_tokens`, `seed`, `eos_id`); without `max_new_tokens` or `max_length` (prompt included) up to 128 tokens
        are added, fewer where the context ends. `do_sample` is False unless given. `logits_processor` may be a
        transformers LogitsProcessorList. The model's mode (train or eval) is kept.
        Raises ModelError for text longer than the context, ConfigError for an unknown or wrong setting.
        """
        prompt = input_ids.shape[-1]
        limit = getattr(getattr(self, "config", None), "max_length", prompt + 128)
        if "max_new_tokens" not in settings:
            if max_length is not None and max_length <= prompt:
                raise ModelError(
                    "max_length leaves no room for an answer",
                    found=f"max_length={max_length}, {prompt} tokens in the prompt",
                    fix="raise max_length, or give max_new_tokens",
                )
            settings["max_new_tokens"] = max(1, (max_length or min(limit, prompt + 128)) - prompt)
        sampling = SamplingConfig(**{"do_sample": False, **settings})
        language_model = _checked(self, input_ids, sampling)
        was_training = isinstance(self, torch.nn.Module) and self.training
        if isinstance(self, torch.nn.Module):
            self.eval()
        try:
            new = list(stream_ids(language_model, input_ids, sampling, logits_processor or ()))
        finally:
            if isinstance(self, torch.nn.Module):
                self.train(was_training)
        return torch.cat([input_ids, torch.stack(new, dim=1)], dim=1)
