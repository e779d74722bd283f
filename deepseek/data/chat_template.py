r"""A chat as one text by a Jinja template, with the template's own marks of turns told apart from what users wrote.

Before the template sees it, every text of a message gets a guard, a character found nowhere else, inside whatever
could become a special token there; special tokens in the rendered text are then the template's alone, and the guards
are taken out. So a user's `<|im_end|>` stays text whatever the template does with it. A template whose turns are
marked by plain words (`[INST]` that is no token) can't be protected so. Not here: token ids (`tokenizer`).

Source: https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError

from deepseek.data.chat_sandbox import BEGIN, END, compile_template, render
from deepseek.data.special_tokens import Segment, Special, split_specials
from deepseek.errors import TokenizerError

MAX_TEMPLATE_CHARACTERS = 1 << 18
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MARKS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), *range(0x10FF00, 0x10FFFE))))


def render_chat(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    specials: Collection[Special],
    tokens: Mapping[str, str],
    variables: Mapping[str, Any],
    *,
    prompt: bool,
    learned: bool,
) -> list[Segment]:
    """Return the chat by the template `source`, cut at its special tokens.

    The template sees `tokens` (`bos_token` and so on) as they are, `messages` and `variables` (`tools`) guarded;
    `prompt` is its `add_generation_prompt`. With `learned` each segment says what the assistant generates: inside
    `{% generation %}` where the template has it; else what each assistant message adds to the prompt before it.

    Raises TokenizerError for a template that does not compile, refuses the chat, needs more than the sandbox gives,
    or does not let the assistant's part be told; and for messages without role and content.
    """
    template, marks = _compiled(source)
    plain = [_checked(message) for message in messages]
    guard, begin, end = _unused([source, *_texts(plain), *_texts(variables)])
    openings = _openings(frozenset(specials))
    guarded = [
        {key: value if key == "role" else _guarded(value, openings, guard) for key, value in one.items()}
        for one in plain
    ]
    values = {key: _guarded(value, openings, guard) for key, value in variables.items()}
    values |= {**tokens, BEGIN: begin, END: end}

    def rendered(count: int, with_prompt: bool) -> str:
        try:
            return render(template, {**values, "messages": guarded[:count], "add_generation_prompt": with_prompt})
        except (TemplateError, RecursionError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise TokenizerError(
                "the chat template refuses this chat", found=f"{type(error).__name__}: {str(error)[:300]}"
            ) from None

    text = rendered(len(guarded), prompt)
    if marks:
        text, spans = _without_marks(text, begin, end)
    else:
        spans = _answers(plain, text, rendered) if learned else []
    return list(_segments(text, spans, specials, guard))


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> tuple[Template, bool]:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise TokenizerError(
            "the chat template is too long", found=len(source), wanted=f"at most {MAX_TEMPLATE_CHARACTERS} characters"
        )
    try:
        return compile_template(source)
    except (TemplateError, RecursionError, SyntaxError, MemoryError, TypeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise TokenizerError(
            "the chat template can't be used" + (f", line {line}" if line else ""),
            found=f"{type(error).__name__}: {str(error)[:300]}",
            wanted="a Jinja template of the safe subset",
        ) from None


def check_template(source: str) -> None:
    """Raise TokenizerError for a template that does not compile."""
    _compiled(source)


def _checked(message: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("role", "content"):
        if key not in message:
            raise TokenizerError(f"a message has no '{key}'", wanted="'role' and 'content'")
    if not isinstance(message["role"], str) or not _ROLE.fullmatch(message["role"]):
        raise TokenizerError("unknown role", found=repr(message["role"])[:80], wanted="a word such as 'user'")
    return dict(message)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _unused(texts: list[str]) -> tuple[str, str, str]:
    """Return three characters that occur nowhere in `texts`."""
    free = (mark for mark in _MARKS if not any(mark in text for text in texts))
    found = [mark for _, mark in zip(range(3), free, strict=False)]
    if len(found) < 3:
        raise TokenizerError("the chat uses up the characters that its marks are made of", fix="remove noncharacters")
    return found[0], found[1], found[2]


@functools.lru_cache(maxsize=64)
def _openings(specials: frozenset[Special]) -> re.Pattern[str] | None:
    """Return what finds each place where a special token could begin, in any letter case, also over a text's end."""
    seconds: dict[str, set[str]] = {}
    for special in specials:
        seconds.setdefault(special.text[0], set()).add(special.text[1:2])
    places = []
    for first, following in sorted(seconds.items()):
        nexts = "|".join(re.escape(second) for second in sorted(following) if second)
        places.append(re.escape(first) + ("" if "" in following else rf"(?={nexts}|\s*\Z)"))
    return re.compile("|".join(places), re.IGNORECASE) if places else None


def _guarded(value: Any, openings: re.Pattern[str] | None, guard: str) -> Any:
    """Return the value with a guard after each place where a special token could begin."""
    if isinstance(value, str):
        return value if openings is None else openings.sub(rf"\g<0>{guard}", value)
    if isinstance(value, Mapping):
        return {_guarded(name, openings, guard): _guarded(item, openings, guard) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(item, openings, guard) for item in value]
    return value


def _without_marks(text: str, begin: str, end: str) -> tuple[str, list[tuple[int, int]]]:
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length, start = 0, None
    for part in re.split(f"([{begin}{end}])", text):
        if part == begin:
            start = length
        elif part == end and start is not None:
            spans.append((start, length))
            start = None
        elif part != end:
            parts.append(part)
            length += len(part)
    return "".join(parts), spans


def _answers(messages: list[dict[str, Any]], text: str, rendered: Callable[[int, bool], str]) -> list[tuple[int, int]]:
    """Return what each assistant message adds to the prompt before it, without the white space behind it."""
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = rendered(place, True), rendered(place + 1, False)
        if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
            raise TokenizerError(
                "the chat template does not tell what the assistant says",
                found=f"message {place} changes the text before it",
                fix="put {% generation %} and {% endgeneration %} around it in the template",
            )
        spans.append((len(before), max(len(before), len(after.rstrip()))))
    return spans


def _segments(text: str, spans: list[tuple[int, int]], specials: Collection[Special], guard: str) -> Iterator[Segment]:
    for part, special, start in split_specials(text, specials, guard):
        end = start + len(part)
        inside = [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
        if guard in part:
            inside = [tuple(offset - part.count(guard, 0, offset) for offset in span) for span in inside]  # type: ignore[misc]
            part = part.replace(guard, "")
        if part:
            yield Segment(part, special, tuple(inside))
