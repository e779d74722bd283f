"""The messages of a conversation within bounds: whole turns go, the oldest first, system messages stay.

A turn is a user's message and all that follows up to the next one. Not here: where conversations are kept
(see `session_stores`), and how many turns a model's context holds (see `deepseek.serve.rest.conversation`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from deepseek.serve.rest.schema import Message

Summarize = Callable[[str, Sequence[Message]], str]
"""Makes a summary of the one so far ("" at first) and the messages that are dropped."""

SUMMARY_HEAD = "Summary of the conversation so far: "
"""How the system message begins that holds a summary."""


def bounded(
    messages: Sequence[Message], max_turns: int, max_bytes: int, summarize: Summarize | None = None
) -> list[Message]:
    """Return what is left of a conversation; the last turn stays even where it alone is too large.

    With `summarize` a system message after those that open the conversation tells what was dropped.
    """
    opening = _opening(messages)
    head, turns = list(messages[:opening]), _turns(messages[opening:])
    sizes = [sum(map(size_of, turn)) for turn in turns]
    room = max_bytes - sum(map(size_of, head))
    first = max(0, len(turns) - max_turns)
    while first < len(turns) - 1 and sum(sizes[first:]) > room:
        first += 1
    kept = [message for turn in turns[first:] for message in turn]
    dropped = [message for turn in turns[:first] for message in turn]
    if not dropped or summarize is None:
        return [*head, *kept]
    before = ""
    if head and head[-1].content.startswith(SUMMARY_HEAD):
        before = head.pop().content.removeprefix(SUMMARY_HEAD)
    return [*head, Message(role="system", content=SUMMARY_HEAD + summarize(before, dropped)), *kept]


def size_of(message: Message) -> int:
    """Return the bytes a message costs."""
    return len(message.content.encode("utf-8", "surrogatepass")) + 16


def packed(messages: Sequence[Message]) -> bytes:
    """Return messages as JSON."""
    return json.dumps([[one.role, one.content] for one in messages], separators=(",", ":")).encode()


def unpacked(data: bytes) -> list[Message]:
    """Return the messages that `packed` wrote. Raises ValueError for anything else."""
    values = json.loads(data)
    if not isinstance(values, list):
        raise ValueError("no list of messages")
    return [Message(role=role, content=content) for role, content in values]


def _opening(messages: Sequence[Message]) -> int:
    """Return how many system messages stand first."""
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    return count


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        if message.role == "user" and (not turns or turns[-1][-1].role != "user"):
            turns.append([message])
        elif turns:
            turns[-1].append(message)
        else:
            turns.append([message])
    return turns
