"""Near-copies made on purpose: words dropped, misspelt, sentences moved, boilerplate added, at a given rate.

To measure on a corpus of one's own how many near-duplicates a search finds. Chinese, Japanese and Korean are edited by
character. Not here: the measuring (`quality`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

import numpy as np

Edit = Callable[[str, float, np.random.Generator], str]

_SIGN = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_UNITS = re.compile(rf"[{_SIGN}]|[^\s{_SIGN}]+|\s+")
_ONE_SIGN = re.compile(rf"[{_SIGN}]")
_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
_BOILERPLATE = (
    "All rights reserved.",
    "Click here to read more about this topic and to subscribe to our newsletter.",
    "This page was last edited by the site's staff; please report any mistake to us.",
    "Share this article with your friends.",
    "By using this site you agree to the use of cookies and to our terms of service.",
)
_BOILERPLATE_SIGNS = (
    "版权所有，未经许可不得转载。",
    "点击这里阅读更多相关内容并订阅我们的通讯。",
    "本页面由网站编辑整理，如有错误请与我们联系。",
    "欢迎把这篇文章分享给你的朋友。",
)


def drop_words(text: str, rate: float, rng: np.random.Generator) -> str:
    """Leave out `rate` of the words or characters, one at least, never the last that is left."""
    units, places = _units(text)
    gone = set(_some(places, rate, rng)) if len(places) > 1 else set()
    return "".join(unit for place, unit in enumerate(units) if place not in gone)


def misspell(text: str, rate: float, rng: np.random.Generator) -> str:
    """Put a wrong letter into `rate` of the words, or another character of the text for `rate` of its characters."""
    units, places = _units(text)
    signs = [units[place] for place in places if _ONE_SIGN.match(units[place])]
    for place in _some(places, rate, rng):
        word = units[place]
        if _ONE_SIGN.match(word):
            units[place] = signs[rng.integers(len(signs))]
        else:
            at = int(rng.integers(len(word)))
            units[place] = word[:at] + string.ascii_lowercase[rng.integers(26)] + word[at + 1 :]
    return "".join(units)


def move_sentences(text: str, rate: float, rng: np.random.Generator) -> str:
    """Move `rate` of the sentences, one at least, to other places."""
    sentences = [sentence for sentence in _SENTENCES.split(text) if sentence]
    for _ in range(max(1, round(rate * len(sentences)))):
        moved = sentences.pop(int(rng.integers(len(sentences)))) if sentences else ""
        sentences.insert(int(rng.integers(len(sentences) + 1)), moved)
    return ("" if _ONE_SIGN.search(text) else " ").join(sentences)


def add_boilerplate(text: str, rate: float, rng: np.random.Generator) -> str:
    """Put phrases of web pages before or behind, until they are `rate` of the text's words or characters."""
    units, places = _units(text)
    phrases = _BOILERPLATE_SIGNS if any(map(_ONE_SIGN.match, units)) else _BOILERPLATE
    gap = "" if phrases is _BOILERPLATE_SIGNS else " "
    added: list[str] = []
    wanted = max(1, round(rate * len(places)))
    while len(added) < wanted:
        added += _UNITS.findall(phrases[rng.integers(len(phrases))] + gap)
    extra = "".join(added[: 2 * wanted]).strip()  # white space counts as a unit there
    return f"{extra}{gap}{text}" if rng.random() < 0.5 else f"{text}{gap}{extra}"


EDITS: dict[str, Edit] = {
    "words dropped": drop_words,
    "words misspelt": misspell,
    "sentences moved": move_sentences,
    "boilerplate added": add_boilerplate,
}
"""All edits by name."""


def _units(text: str) -> tuple[list[str], list[int]]:
    """Return words, single characters and white space, and the places of all but the white space."""
    units: list[str] = _UNITS.findall(text)
    return units, [place for place, unit in enumerate(units) if not unit.isspace()]


def _some(places: Sequence[int], rate: float, rng: np.random.Generator) -> list[int]:
    count = min(len(places), max(1, round(rate * len(places))))
    return [int(place) for place in rng.choice(places, count, replace=False)] if places else []
