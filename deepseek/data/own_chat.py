"""Chats in our own template: each turn is the token of its role, the content, and <|end|>.

Not here: templates in Jinja (`chat_template`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deepseek.data.pretokenize import checked
from deepseek.data.record_forms import Message
from deepseek.data.tokenizer_format import ASSISTANT, END, SPECIAL_TOKENS, SYSTEM, USER
from deepseek.errors import TokenizerError

Chat = Sequence[Message | Mapping[str, Any]]

OWN_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|end|>'"
    " }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same in Jinja, for other libraries."""

_ROLE_IDS = {role: SPECIAL_TOKENS.index(name) for role, name in (("system", SYSTEM), ("user", USER))}
_ROLE_IDS["assistant"] = ASSISTANT_ID = SPECIAL_TOKENS.index(ASSISTANT)
END_ID = SPECIAL_TOKENS.index(END)


def encode_own_chats(
    chats: Sequence[Chat], encode: Callable[[Sequence[str]], list[list[int]]]
) -> list[tuple[list[int], list[bool]]]:
    """Return each chat's ids, and for each id whether it is learned; `encode` gives the ids of contents.

    Raises TokenizerError for an empty chat, an unknown role, and content that is no text.
    """
    turns = [[_as_message(message) for message in chat] for chat in chats]
    if not all(turns):
        raise TokenizerError("a chat has no message", wanted="at least one {'role', 'content'}")
    contents = iter(encode([message.content for chat in turns for message in chat]))
    encoded = []
    for chat in turns:
        ids: list[int] = []
        learned: list[bool] = []
        for message in chat:
            content = next(contents)
            ids += [_ROLE_IDS[message.role], *content, END_ID]
            learned += [False] + [message.role == "assistant"] * (len(content) + 1)
        encoded.append((ids, learned))
    return encoded


def _as_message(message: Message | Mapping[str, Any]) -> Message:
    if isinstance(message, Message):
        role, content = message
    else:
        try:
            role, content = message["role"], message["content"]
        except KeyError as error:
            raise TokenizerError(f"a message has no {error}", wanted="'role' and 'content'") from None
    if role not in _ROLE_IDS:
        raise TokenizerError("unknown role", found=repr(role)[:80], wanted=", ".join(_ROLE_IDS))
    return Message(role, checked(content))
