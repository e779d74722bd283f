"""HTML from Python: text is escaped unless it is already `Html`, so nothing from data becomes markup by accident.

Not a template engine and not a parser: elements, joined. Void elements are written as HTML5 has them.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"meta", "link", "br", "input", "hr", "img"})
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def safe(value: object) -> Html:
    """Return `value` as markup: `Html` as it is, anything else as escaped text.

    What HTML or UTF-8 can't hold becomes visible: control characters as control pictures, lone surrogates as U+FFFD.
    """
    if isinstance(value, Html):
        return value
    text = str(value).replace("\r\n", "\n").translate(_CONTROL_PICTURES)
    text = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    return Html(html.escape(text, quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Return the parts as one piece of markup, each made safe, with `between` (made safe too) between them."""
    return Html(safe(between).join(safe(part) for part in parts))


def tag(element: str, /, *children: object, **attributes: str | bool | None) -> Html:
    """Return an element. `class_="x"` writes `class`, `aria_label="x"` writes `aria-label`.

    An attribute that is True is written bare, one that is None or False not at all.
    """
    written = [element]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(attribute)
        elif value is not None and value is not False:
            written.append(f'{attribute}="{safe(value)}"')
    opening = f"<{' '.join(written)}>"
    return Html(opening) if element in _VOID else Html(f"{opening}{join(children)}</{element}>")


def both(english: object, chinese: object) -> Html:
    """Return the same words in the page's two languages; the style sheet shows one of them."""
    return join([tag("span", english, class_="en", lang="en"), tag("span", chinese, class_="zh", lang="zh-CN")])
