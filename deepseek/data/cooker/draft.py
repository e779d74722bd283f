"""A document on its way through the rules: the record it came as, and its texts as they are now.

A record keeps every key it came with; only its texts change. A chat has one text for each message (its prompt and
response, where it came in that form), so that rules which repair look at each, and rules which judge at all together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from deepseek.data.cooker.language import identify
from deepseek.data.record_forms import BadRecord, parse_line

Record = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """One document. `texts` are the current ones; `record` is the JSON object as it was read."""

    record: Record
    texts: tuple[str, ...]
    path: str
    line: int

    @property
    def source(self) -> str:
        """Where the document comes from, as `file:line`."""
        return f"{self.path}:{self.line}"

    @property
    def is_chat(self) -> bool:
        """Whether it is a chat, or a prompt with its response."""
        return "text" not in self.record

    @cached_property
    def text(self) -> str:
        """All its texts, joined by line ends."""
        return self.texts[0] if len(self.texts) == 1 else "\n".join(self.texts)

    @cached_property
    def language(self) -> str:
        """Its language, as `identify` says."""
        return identify(self.text)[0]

    def with_texts(self, texts: tuple[str, ...]) -> Draft:
        """Return the same document with other texts."""
        return Draft(self.record, texts, self.path, self.line)

    def output(self) -> Record:
        """Return the record with the current texts in it."""
        return with_texts(self.record, self.texts)


class Change(NamedTuple):
    """A rule changed the texts: why, and the value it measured."""

    texts: tuple[str, ...]
    reason: str
    value: float | str


class Drop(NamedTuple):
    """A rule gives the document up: why, and the value it measured."""

    reason: str
    value: float | str


def texts_of(record: Record) -> tuple[str, ...]:
    """Return the texts of a record that `parse` has checked."""
    if "text" in record:
        return (record["text"],)
    if "messages" in record:
        return tuple(message["content"] for message in record["messages"])
    return record["prompt"], record["response"]


def with_texts(record: Record, texts: tuple[str, ...]) -> Record:
    """Return the record with other texts, its further keys as they are."""
    if "text" in record:
        return {**record, "text": texts[0]}
    if "messages" in record:
        pairs = zip(record["messages"], texts, strict=True)
        return {**record, "messages": [{**message, "content": text} for message, text in pairs]}
    return {**record, "prompt": texts[0], "response": texts[1]}


def parse(line: bytes, keep_surrogates: bool) -> Record:
    """Return the record that one line of JSON holds, checked as `read_documents` checks it. Raises BadRecord.

    With `keep_surrogates`, half a surrogate pair in a text is no reason to refuse the line: the encoding rule mends it.
    """
    try:
        parse_line(line)
    except BadRecord as bad:
        if bad.reason != "lone surrogate" or not keep_surrogates:
            raise
        parse_line(json.dumps(_without_surrogates(json.loads(line))).encode())
    record: Record = json.loads(line)
    return record


def renamed(line: bytes, names: Mapping[str, str]) -> bytes:
    """Return the line of JSON with other keys: `names` says which key stands for text, prompt, response or messages."""
    try:
        record = json.loads(line) if names else None
    except (ValueError, RecursionError):
        return line  # `parse` says what is wrong
    if not isinstance(record, dict):
        return line
    return json.dumps({names.get(key, key): value for key, value in record.items()}).encode()


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list) else value


def to_json(value: Any) -> str:
    """Return one line of JSON; a lone surrogate, which UTF-8 can't hold, is written as its escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text
