"""From a checked request to the engine's jobs: tokens, lengths, defaults.

Not here: the bounds of single fields (see `schema`) and the queue (see `engine`).
"""

from __future__ import annotations

from deepseek.errors import RequestError, TokenizerError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.rest.schema import ChatForm, CompletionForm
from deepseek.serve.text.engine import Job
from deepseek.serve.text.models import ContextLengthError, TextModel

DEFAULT_MAX_TOKENS = 256
"""Tokens of an answer where the request names no number, or fewer where the model has no more room."""

LEAST_TEMPERATURE = 1e-4
"""A lower temperature is taken as 0: dividing by it would leave the range of float32, and picks the same token."""


def prepare(model: TextModel, form: CompletionForm | ChatForm) -> list[Job]:
    """Return one job an answer, in the order of the choices: prompt by prompt, `n` for each.

    With a seed, answer i uses seed + i. Raises RequestError (400) for a prompt that does not fit the model.
    """
    field = "messages" if isinstance(form, ChatForm) else "prompt"
    jobs: list[Job] = []
    for prompt_ids in _prompts(model, form, field):
        room = max(0, model.max_length - len(prompt_ids))
        wanted = _max_tokens(form)
        if room < (wanted or 1):
            raise _too_long(model.max_length, len(prompt_ids), wanted, field)
        for _ in range(form.n):
            sampling = SamplingConfig(
                max_new_tokens=wanted or min(DEFAULT_MAX_TOKENS, room),
                temperature=form.temperature if form.temperature >= LEAST_TEMPERATURE else 0.0,
                top_k=form.top_k,
                top_p=form.top_p,
                repetition_penalty=form.repetition_penalty,
                seed=None if form.seed is None else (form.seed + len(jobs)) % 2**63,
            )
            stop_ids = model.stop_ids(chat=field == "messages")
            jobs.append(Job(prompt_ids, sampling, tuple(form.stop), stop_ids, form.stream))
    return jobs


def size(form: CompletionForm | ChatForm) -> int:
    """Return how much there is to tokenize, in characters or tokens."""
    if isinstance(form, ChatForm):
        return sum(len(message.content) for message in form.messages)
    return sum(len(prompt) for prompt in form.prompt)


def _prompts(model: TextModel, form: CompletionForm | ChatForm, field: str) -> list[list[int]]:
    try:
        if isinstance(form, ChatForm):
            return [model.encode_chat([message.model_dump() for message in form.messages])]
        return [model.encode(prompt) if isinstance(prompt, str) else _known(model, prompt) for prompt in form.prompt]
    except TokenizerError as error:
        raise RequestError(error.problem, field=field, wanted=error.wanted, fix=error.fix) from error


def _known(model: TextModel, prompt_ids: list[int]) -> list[int]:
    largest = max(prompt_ids)
    if largest >= model.vocab_size:
        wanted = f"token ids below {model.vocab_size}"
        raise RequestError("'prompt' has a token that the model does not know", field="prompt", wanted=wanted)
    return prompt_ids


def _max_tokens(form: CompletionForm | ChatForm) -> int | None:
    return (form.max_tokens or form.max_completion_tokens) if isinstance(form, ChatForm) else form.max_tokens


def _too_long(max_length: int, prompt: int, answer: int | None, field: str) -> ContextLengthError:
    asked = f"{prompt} tokens of prompt and {answer} of answer, together {prompt + answer}" if answer else None
    return ContextLengthError(
        "the request is longer than the model's context",
        field="max_tokens" if answer and prompt < max_length else field,
        found=asked or f"{prompt} tokens of prompt",
        wanted=f"at most {max_length} together",
        fix="shorten the prompt or lower max_tokens",
    )
