"""From a checked request to the engine's jobs: tokens, lengths, defaults.

Not here: the bounds of single fields (see `schema`) and the queue (see `engine`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.errors import RequestError, TokenizerError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.rest.schema import ChatForm, CompletionForm, EmbeddingForm
from deepseek.serve.text.engine import Job
from deepseek.serve.text.models import ContextLengthError, TextModel

if TYPE_CHECKING:
    from deepseek.serve.text.plan import Constraint

DEFAULT_MAX_TOKENS = 256
"""Tokens of an answer where the request names no number, or fewer where the model has no more room."""

LEAST_TEMPERATURE = 1e-4
"""A lower temperature is taken as 0: dividing by it would leave the range of float32, and picks the same token."""


def prepare(model: TextModel, form: CompletionForm | ChatForm) -> list[Job]:
    """Return one job an answer, in the order of the choices: prompt by prompt, `n` for each.

    With a seed, answer i uses seed + i. Raises RequestError (400) for a prompt that does not fit the model.
    """
    field = "messages" if isinstance(form, ChatForm) else "prompt"
    constraint = _constraint(model, form)
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
            job = Job(prompt_ids, sampling, tuple(form.stop), stop_ids, form.stream, form.likeliest, constraint)
            jobs.append(job)
    return jobs


def prepare_embeddings(model: TextModel, form: EmbeddingForm) -> list[list[int]]:
    """Return the tokens of each text. Raises RequestError (400) for one that does not fit the model."""
    prompts = _tokens(model, form.input, "input")
    for prompt_ids in prompts:
        if len(prompt_ids) > model.max_length:
            raise _too_long(model.max_length, len(prompt_ids), None, "input")
    return prompts


def is_repeatable(form: CompletionForm | ChatForm) -> bool:
    """Return whether the same request has the same answer each time: greedy, or with a seed."""
    return form.seed is not None or form.temperature < LEAST_TEMPERATURE or form.top_k == 1


def size(form: CompletionForm | ChatForm | EmbeddingForm) -> int:
    """Return how much there is to tokenize, in characters or tokens."""
    if isinstance(form, ChatForm):
        return sum(len(message.content) for message in form.messages)
    return sum(len(prompt) for prompt in (form.input if isinstance(form, EmbeddingForm) else form.prompt))


def _prompts(model: TextModel, form: CompletionForm | ChatForm, field: str) -> list[list[int]]:
    if not isinstance(form, ChatForm):
        return _tokens(model, form.prompt, field)
    try:
        return [model.encode_chat([message.model_dump() for message in form.messages])]
    except TokenizerError as error:
        raise RequestError(error.problem, field=field, wanted=error.wanted, fix=error.fix) from error


def _tokens(model: TextModel, prompts: list[str] | list[list[int]], field: str) -> list[list[int]]:
    try:
        return [model.encode(prompt) if isinstance(prompt, str) else _known(model, prompt, field) for prompt in prompts]
    except TokenizerError as error:
        raise RequestError(error.problem, field=field, wanted=error.wanted, fix=error.fix) from error


def _known(model: TextModel, prompt_ids: list[int], field: str) -> list[int]:
    if max(prompt_ids) >= model.vocab_size:
        wanted = f"token ids below {model.vocab_size}"
        raise RequestError(f"'{field}' has a token that the model does not know", field=field, wanted=wanted)
    return prompt_ids


def _constraint(model: TextModel, form: CompletionForm | ChatForm) -> Constraint | None:
    """Return what the answer must look like, None for any text."""
    wanted = form.response_format
    if wanted is None or wanted.type == "text":
        return None
    return model.constraint(wanted.json_schema.json_schema if wanted.json_schema is not None else None)


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
