"""What a client may ask: strict, bounded forms of OpenAI's completion, chat and embedding requests.

Every number is bounded before anything is allocated for it; an unknown field is refused with the nearest known name.
Besides OpenAI's fields there are `version`, `top_k`, `repetition_penalty` and, in a chat, `session_id`. `user` is
accepted and not used. `null` means the default. Not here: what is told of a wrong body (see `strict`), and whether the
prompt fits the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from deepseek.serve.rest.strict import MAX_FIELDS as MAX_FIELDS
from deepseek.serve.rest.strict import NEUTRAL as NEUTRAL
from deepseek.serve.rest.strict import Form as Form
from deepseek.serve.rest.strict import checked as checked
from deepseek.serve.rest.strict import parse as parse
from deepseek.serve.rest.strict import shown as shown

MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a model may be called."""
MAX_ANSWERS = 16
"""Answers of one request: prompts times `n`."""
MAX_EMBEDDINGS = 64
"""Texts of one request for embeddings."""

_Stop = Annotated[str, Field(min_length=1, max_length=128)]
_Likeliest = Annotated[int, Field(ge=0, le=5)]
_Token = Annotated[int, Field(ge=0)]
_Tokens = Annotated[list[_Token], Field(min_length=1)]
Prompt = str | Annotated[list[str], Field(min_length=1)] | _Tokens | Annotated[list[_Tokens], Field(min_length=1)]
"""The spellings of one or more texts, given as text or as token ids."""


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


def _number_or_none(value: Any) -> Any:
    return None if value is False else value  # the chat's spelling of "no log probabilities"


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


class TextPart(Form):
    """A part of a message."""

    type: Literal["text"]
    text: str


class StreamOptions(Form):
    """How to stream."""

    include_usage: bool = False


class JsonSchemaFormat(Form):
    """A JSON schema that the answer must follow."""

    name: str = Field("answer", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=4096)
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Form):
    """What the answer must be: any text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_named(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("json_schema", '"json_schema" with the type "json_schema", and only with it')
        return self


class SamplingForm(Form):
    """The fields that completion and chat requests have in common."""

    model: Annotated[str, AfterValidator(_model_name)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=16384)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)
    repetition_penalty: float = Field(1.0, ge=0.1, le=10)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    n: int = Field(1, ge=1, le=8)
    stop: Annotated[
        list[_Stop],
        Field(max_length=16),
        BeforeValidator(_one_or_more, json_schema_input_type=_Stop | Annotated[list[_Stop], Field(max_length=16)]),
    ] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=256)
    version: Annotated[str, AfterValidator(_model_name)] | None = None

    sections: ClassVar[Mapping[str, type[Form]]] = {"stream_options": StreamOptions, "response_format": ResponseFormat}

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

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts, json_schema_input_type=Prompt)]
    logprobs: Annotated[
        _Likeliest | None, BeforeValidator(_number_or_none, json_schema_input_type=_Likeliest | Literal[False] | None)
    ] = None

    @property
    def likeliest(self) -> int | None:
        """How many likely tokens are told at each place beside the chosen one; None: no log probabilities."""
        return self.logprobs

    @model_validator(mode="after")
    def _bounded_answers(self) -> Self:
        if len(self.prompt) * self.n > MAX_ANSWERS:
            raise PydanticCustomError("n", f"prompts times n at most {MAX_ANSWERS}")
        return self


class Message(Form):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of_parts, json_schema_input_type=str | list[TextPart])]


class ChatForm(SamplingForm):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(None, ge=1, le=16384)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    session_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")

    sections: ClassVar[Mapping[str, type[Form]]] = {**SamplingForm.sections, "messages": Message}

    @property
    def likeliest(self) -> int | None:
        """How many likely tokens are told at each place beside the chosen one; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "logprobs: true beside it")
        return self

    @model_validator(mode="after")
    def _one_answer_in_a_session(self) -> Self:
        if self.session_id is not None and self.n > 1:
            raise PydanticCustomError("n", "1 in a session, which goes on with one answer")
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "the same value as max_completion_tokens, or only one of them")
        return self


class EmbeddingForm(Form):
    """The body of `/v1/embeddings`."""

    model: Annotated[str, AfterValidator(_model_name)] | None = None
    input: Annotated[list[str] | list[list[int]], PlainValidator(_prompts, json_schema_input_type=Prompt)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _bounded_inputs(self) -> Self:
        if len(self.input) > MAX_EMBEDDINGS:
            raise PydanticCustomError("input", f"at most {MAX_EMBEDDINGS} texts")
        return self
