"""Scripts of characters, and the units that text is counted in: words where there are spaces, else characters.

Chinese and Japanese have no spaces and Korean joins particles to its words, so for overlap and repetition each of their
characters is a unit, as are words elsewhere.
Ranges: the Unicode Standard, https://www.unicode.org/Public/UNIDATA/Blocks.txt.
"""

from __future__ import annotations

import re

HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"

_UNIT = re.compile(f"[{HAN}{KANA}{HANGUL}]|[^\\W_{HAN}{KANA}{HANGUL}]+")
_WORD = re.compile(f"[^\\W_{HAN}{KANA}]+")
_UNSPACED = re.compile(f"[{HAN}{KANA}]+")


def units(text: str) -> list[str]:
    """Return the lower-case words of `text`, and each Chinese, Japanese or Korean character as a unit of its own."""
    return _UNIT.findall(text.lower())


def words(text: str) -> list[str]:
    """Return the runs of letters and digits outside Chinese and Japanese, as written (Korean words are words)."""
    return _WORD.findall(text)


def unspaced(text: str) -> int:
    """Return how many Chinese or Japanese characters `text` has."""
    return 0 if text.isascii() else sum(map(len, _UNSPACED.findall(text)))
