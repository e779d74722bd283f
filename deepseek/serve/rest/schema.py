"""What a client may ask: strict, bounded forms of OpenAI's completion and chat requests.

Every number is bounded before anything is allocated for it; an unknown field is refused with the nearest known name.
Besides OpenAI's fields there are `top_k` and `repetition_penalty`. `user` is accepted and not used. Fields of OpenAI's
interface that this server has no use for are accepted at the value that changes nothing (`NEUTRAL`) and refused
otherwise. `null` means the default. Not here: whether the prompt fits the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from deepseek.errors import RequestError, did_you_mean

MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a model may be called."""
MAX_FIELDS = 64
"""Fields of one body, known or not."""
MAX_ANSWERS = 16
"""Answers of one request: prompts times `n`."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "metadata": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Fields of OpenAI's interface without a use here, each with the values that ask for nothing."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """Return a list of texts or token lists for any of OpenAI's four spellings of a prompt."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if _is_tokens(value):
            return [value]
        if all(isinstance(item, list) and item and _is_tokens(item) for item in value):
            return value
    raise PydanticCustomError("prompt", "a text, a list of texts, a list of token ids, or a list of such lists")


def _is_tokens(value: list[Any]) -> bool:
    return all(type(item) is int and item >= 0 for item in value)


def _model_name(value: str) -> str:
    if not MODEL_NAME.fullmatch(value):
        raise PydanticCustomError("model", "1 to 64 letters, digits, '.', '_' or '-'")
    return value


def _text_of_parts(value: Any) -> Any:
    """Return the text of a message given as a list of text parts; anything else as it is."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not (isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"):
            raise PydanticCustomError("content", 'a text, or a list of {"type": "text", "text": ...}')
        if not isinstance(part["text"], str):
            raise PydanticCustomError("content", 'a text in every part\'s "text"')
    return "".join(part["text"] for part in value)


class StreamOptions(_Form):
    """How to stream."""

    include_usage: bool = False


class SamplingForm(_Form):
    """The fields that completion and chat requests have in common."""

    model: Annotated[str, AfterValidator(_model_name)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=16384)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)
    repetition_penalty: float = Field(1.0, ge=0.1, le=10)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    n: int = Field(1, ge=1, le=8)
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], BeforeValidator(_one_or_more)] = Field(
        [], max_length=16
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream: true beside it")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionForm(SamplingForm):
    """The body of `/v1/completions`."""

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts)]

    @model_validator(mode="after")
    def _bounded_answers(self) -> Self:
        if len(self.prompt) * self.n > MAX_ANSWERS:
            raise PydanticCustomError("n", f"prompts times n at most {MAX_ANSWERS}")
        return self


class Message(_Form):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of_parts)]


class ChatForm(SamplingForm):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1, le=16384)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "the same value as max_completion_tokens, or only one of them")
        return self


_SECTIONS: Mapping[str, type[_Form]] = {"messages": Message, "stream_options": StreamOptions}
_AnyForm = TypeVar("_AnyForm", bound=SamplingForm)


def parse(form: type[_AnyForm], body: Mapping[str, Any]) -> _AnyForm:
    """Return `body` as `form`. Raises RequestError (400) with the first wrong field named."""
    if len(body) > MAX_FIELDS:
        raise RequestError("too many fields", found=len(body), wanted=f"at most {MAX_FIELDS}")
    known = form.model_fields.keys() | NEUTRAL.keys()
    values = {name: value for name, value in body.items() if not (value is None and name in known)}
    for name in NEUTRAL.keys() & values.keys():
        _refuse_unless_neutral(name, values.pop(name))
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise _request_error(form, error.errors(include_url=False)[0]) from None


def _refuse_unless_neutral(name: str, value: Any) -> None:
    if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL[name]):
        raise RequestError(
            f"'{name}' is not supported by this server",
            field=name,
            found=shown(value),
            fix=f"leave it out (only {' or '.join(str(neutral) for neutral in NEUTRAL[name])} is accepted)",
        )


def _request_error(form: type[SamplingForm], detail: ErrorDetails) -> RequestError:
    location = [str(part)[:64].encode("ascii", "backslashreplace").decode() for part in detail["loc"]]
    name = ".".join(location) or detail["type"]
    if detail["type"] == "extra_forbidden":
        owner = _SECTIONS.get(location[0], form) if len(location) > 1 else form
        return RequestError(f"unknown field '{name}'", field=name, fix=did_you_mean(location[-1], owner.model_fields))
    if detail["type"] == "missing":
        return RequestError(f"'{name}' is missing", field=name, fix=f"add '{name}'")
    wanted = re.sub(r"^(Input|List|String) should (be |have |match )?", "", detail["msg"])
    if not detail["loc"]:
        return RequestError(f"'{name}' does not fit the rest", field=name, wanted=wanted)
    return RequestError(f"'{name}' is {shown(detail['input'])}", field=name, wanted=wanted)


def shown(value: Any) -> str:
    """Return a value as an error may show it: short, and plain ASCII."""
    text = f"of type {type(value).__name__}" if isinstance(value, list | dict) else ascii(value)
    return text if len(text) <= 48 else text[:45] + "..."
