"""Conversations that the server remembers: earlier turns before the new ones, the oldest dropped where room is short.

Not here: where turns are kept and how long (see `deepseek.serve.state`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from deepseek.errors import RequestError
from deepseek.serve.rest.schema import ChatForm, CompletionForm, Message
from deepseek.serve.text.models import ContextLengthError
from deepseek.serve.text.prepare import DEFAULT_MAX_TOKENS, prepare

if TYPE_CHECKING:
    from deepseek.serve.text.models import TextModel

_SHARE = 4
"""An answer without a stated length is kept at least this part of the context free by dropping turns."""


class Sessions(Protocol):
    """Conversations by id."""

    async def load(self, session: str, /) -> list[Message]:
        """Return the turns so far, oldest first; none for an unknown or expired id."""
        ...

    async def append(self, session: str, messages: list[Message], /) -> None:
        """Add turns."""
        ...


async def in_session(
    sessions: Sessions | None, form: CompletionForm | ChatForm, model: TextModel, state: dict[str, Any]
) -> CompletionForm | ChatForm:
    """Return `form` with its session's earlier turns before its own; as it is where it names no session.

    Raises RequestError (400) where sessions are switched off, or the new turns alone don't fit the model.
    """
    if not isinstance(form, ChatForm) or form.session_id is None:
        return form
    if sessions is None:
        raise RequestError(
            "this server keeps no sessions", field="session_id", fix="send the whole conversation in 'messages'"
        )
    history = await sessions.load(_owned(form.session_id, state))
    return await asyncio.to_thread(_fitted, form, history, model)


async def remember(
    sessions: Sessions | None, form: CompletionForm | ChatForm, answer: str, state: dict[str, Any]
) -> None:
    """Add the new turns and the answer to the form's session, where it names one."""
    if sessions is not None and isinstance(form, ChatForm) and form.session_id is not None:
        turns = [*form.messages, Message(role="assistant", content=answer)]
        await sessions.append(_owned(form.session_id, state), turns)


def _fitted(form: ChatForm, history: Sequence[Message], model: TextModel) -> ChatForm:
    """Return the form with as many of the latest turns as fit; system messages that open the history stay."""
    opening = 0
    while opening < len(history) and history[opening].role == "system":
        opening += 1
    turns = history[opening:]
    wanted = form.max_tokens or form.max_completion_tokens
    room = wanted or max(1, min(DEFAULT_MAX_TOKENS, model.max_length // _SHARE))

    def with_last(count: int) -> ChatForm:
        kept = turns[len(turns) - count :]
        while kept and kept[0].role == "assistant":  # an answer without its question says nothing
            kept = kept[1:]
        return form.model_copy(update={"messages": [*history[:opening], *kept, *form.messages]})

    def fits(count: int) -> bool:
        trial = with_last(count).model_copy(update={"max_tokens": room, "response_format": None})
        try:
            prepare(model, trial)
        except ContextLengthError:
            return False
        return True

    if fits(len(turns)):
        return with_last(len(turns))
    low, high = 0, len(turns)  # the last `low` turns fit (or none do), the last `high` don't
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return with_last(low)


def _owned(session: str, state: dict[str, Any]) -> str:
    """Return the id under which a session is kept: each API key has its own."""
    owner = state.get("key")
    return session if owner is None else f"{owner}:{session}"
