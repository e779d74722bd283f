"""One line of JSON to one record: the three forms a training record may have, and what can be wrong with it.

Not here: files, line numbers and the policy for bad lines (`records`).
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, get_args

Role = Literal["system", "user", "assistant"]

_ROLES: tuple[Role, ...] = get_args(Role)
RECORD_FORMS = (
    '{"text": ...}, {"prompt": ..., "response": ...} or {"messages": [{"role": ..., "content": ...}]} on one line'
)


class Message(NamedTuple):
    """One turn of a chat."""

    role: Role
    content: str


class BadRecord(Exception):
    """A line or file can't be used. `reason` is the kind of trouble, `detail` this one case, `line` where, if known."""

    def __init__(self, reason: str, detail: str = "", line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.line = line


class Record(NamedTuple):
    """A record's text, or its messages (a prompt with its response is a chat of two)."""

    text: str
    messages: tuple[Message, ...] | None = None


_decoder = json.JSONDecoder()


def plain_text(line: str) -> str | None:
    """Return the text of a line that holds `{"text": ...}` and no other form; None where `parse_line` must look.

    The short way for the most common form, a third of its cost; never a way around its checks.
    """
    try:
        record, end = _decoder.raw_decode(line)
    except (ValueError, RecursionError):
        return None
    if type(record) is not dict or (end != len(line) and line[end:].strip(" \t\r")):
        return None
    if len(record) != 1 and ("messages" in record or "prompt" in record):
        return None
    text = record.get("text")
    if type(text) is not str or ("\\u" in line and not text.isascii()):  # only an escape gives a lone surrogate
        return None
    return text


def parse_object(line: bytes, decoder: json.JSONDecoder) -> dict[str, Any]:
    """Return the JSON object on one line of UTF-8, as `decoder` reads it. Raises BadRecord."""
    if b"\0" in line:
        raise BadRecord("NUL bytes")
    try:
        record = decoder.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecord("not valid UTF-8", f"byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise BadRecord("not valid JSON", f"{error.msg}, column {error.colno}") from None
    except RecursionError:
        raise BadRecord("not valid JSON", "nested too deeply") from None
    except ValueError as error:  # a number with thousands of digits
        raise BadRecord("not valid JSON", str(error)) from None
    if not isinstance(record, dict):
        raise BadRecord("not a JSON object", f"found {type(record).__name__}")
    return record


def parse_line(line: bytes) -> Record:
    """Return the record that one line of UTF-8 JSON holds. Raises BadRecord."""
    record = parse_object(line, _decoder)
    forms = [form for form in (("text",), ("prompt", "response"), ("messages",)) if all(key in record for key in form)]
    if len(forms) != 1:
        if forms:
            raise BadRecord("more than one form", f"found {' and '.join('/'.join(form) for form in forms)}; keep one")
        keys = ", ".join(repr(key)[:40] for key in list(record)[:8])
        raise BadRecord("no text field", f"found keys {keys or 'none'}; wanted {RECORD_FORMS}")
    if forms[0] == ("text",):
        return Record(_text(record["text"], "text"))
    if forms[0] == ("messages",):
        return Record("", _messages(record["messages"]))
    prompt, response = _text(record["prompt"], "prompt"), _text(record["response"], "response")
    if not response:
        raise BadRecord("empty response")
    return Record("", (Message("user", prompt), Message("assistant", response)))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord("field of the wrong type", f"'{name}' is {type(value).__name__}; wanted text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRecord("lone surrogate", f"'{name}', character {error.start + 1}") from None
    return value


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadRecord("field of the wrong type", "'messages' is not a list with at least one message")
    messages = []
    for index, item in enumerate(value):
        if not isinstance(item, dict) or "role" not in item or "content" not in item:
            raise BadRecord("field of the wrong type", f"messages[{index}] is not an object with role and content")
        role = next((role for role in _ROLES if role == item["role"]), None)
        if role is None:
            raise BadRecord("unknown role", f"messages[{index}] has {item['role']!r:.40}; wanted {', '.join(_ROLES)}")
        messages.append(Message(role, _text(item["content"], f"messages[{index}].content")))
    if all(message.role != "assistant" for message in messages):
        raise BadRecord("no assistant message", "there is nothing to learn from")
    return tuple(messages)
