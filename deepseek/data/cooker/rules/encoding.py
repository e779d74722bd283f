"""Rule `encoding`: mojibake, HTML entities, control characters, surrogates and composition put right."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

from deepseek.data.cooker.config import EncodingConfig
from deepseek.data.cooker.draft import Change, Draft, Drop
from deepseek.data.cooker.mojibake import repair

_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSEEN = dict.fromkeys(
    [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0x200B, 0x2060, 0xFEFF, 0xFFFE, 0xFFFF]
)
_PLAIN_ASCII = re.compile(r"[\n\t\x20-\x25\x27-\x7e]*")
_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}


@dataclass(frozen=True)
class Encoding:
    """Mends what can be mended, and drops a document that is mostly U+FFFD: its characters are lost."""

    config: EncodingConfig
    name = "encoding"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return the mended texts, or why the document is given up. The value names what was mended."""
        done: dict[str, None] = {}
        texts = tuple(self._mend(text, done) for text in draft.texts)
        length = sum(map(len, texts))
        lost = sum(text.count("\ufffd") for text in texts) / max(1, length)
        if lost > self.config.max_lost_share:
            return Drop("characters lost (U+FFFD)", round(lost, 4))
        if not any(text.strip() for text in texts):
            return Drop("nothing left", 0)
        return Change(texts, "mended", ", ".join(done)) if texts != draft.texts else None

    def _mend(self, text: str, done: dict[str, None]) -> str:
        """Return `text` mended; the steps that changed it become keys of `done`."""
        if _PLAIN_ASCII.fullmatch(text):
            return text
        steps = (
            ("surrogates", True, _join_surrogates),
            ("HTML entities", self.config.html_entities and "&" in text, _unescape),
            ("mojibake", self.config.mojibake, repair),
            ("line ends", True, lambda value: value.replace("\r\n", "\n").replace("\r", "\n")),
            ("unseen characters", True, lambda value: value.translate(_UNSEEN)),
            ("full-width letters", self.config.full_width, lambda value: value.translate(_FULL_WIDTH)),
            ("composition", True, lambda value: unicodedata.normalize("NFC", value)),
        )
        for name, wanted, step in steps:
            if wanted and (mended := step(text)) != text:
                done[name] = None
                text = mended
        return text


def _join_surrogates(text: str) -> str:
    """Return `text` with halves of pairs joined, and U+FFFD where a half stands alone."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _unescape(text: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text)
