"""Which language a text is in, offline: by script, then by the commonest words and letters of each language.

After the idea of short-word profiles (Grefenstette 1995, "Comparing two language identification schemes", JADT).
Good for whole sentences; of a few words alone it says "und" (undetermined). It does not tell apart what shares script
and words closely: simplified from traditional Chinese, Bosnian from Croatian from Serbian.
"""

from __future__ import annotations

import re
from collections import Counter

from deepseek.data.cooker.script import HAN, HANGUL, KANA
from deepseek.data.cooker.stop_words import LETTERS, STOP_WORDS

UNDETERMINED = "und"
LANGUAGES = ("zh", "ja", "ko", "ru", "uk", "bg", "el", "ar", "fa", "he", "hi", "th", *STOP_WORDS)
"""Codes (ISO 639-1) of what can be told apart."""

_SAMPLE = 4000
_SCRIPTS = {
    "han": re.compile(f"[{HAN}]+"),
    "kana": re.compile(f"[{KANA}]+"),
    "ko": re.compile(f"[{HANGUL}]+"),
    "cyrillic": re.compile("[\u0400-\u04ff]+"),
    "el": re.compile("[\u0370-\u03ff\u1f00-\u1fff]+"),
    "arabic": re.compile("[\u0600-\u06ff]+"),
    "he": re.compile("[\u0590-\u05ff]+"),
    "hi": re.compile("[\u0900-\u097f]+"),
    "th": re.compile("[\u0e00-\u0e7f]+"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+"),
}
_LETTERS_OF_A_HAN = 3.0  # one Chinese character says about as much as three letters
_WORD = re.compile(r"[^\W\d_]+")
_LANGUAGES_OF = {
    word: tuple(code for code, listed in STOP_WORDS.items() if word in listed)
    for word in set().union(*STOP_WORDS.values())
}
_LANGUAGES_OF_LETTER = {
    letter: tuple(code for code, listed in LETTERS.items() if letter in listed)
    for letter in set("".join(LETTERS.values()))
}


def identify(text: str) -> tuple[str, float]:
    """Return `(code, confidence)`: a code of `LANGUAGES` or "und", and from 0 to 1 how clear it is.

    The first 4000 characters are looked at.
    """
    sample = text[:_SAMPLE]
    if sample.isascii():
        return _latin(sample)
    shares = {name: float(sum(map(len, pattern.findall(sample)))) for name, pattern in _SCRIPTS.items()}
    for name in ("han", "kana", "ko"):
        shares[name] *= _LETTERS_OF_A_HAN
    east = shares.pop("han") + shares["kana"]
    kana = shares.pop("kana")
    shares["east"] = east
    total = sum(shares.values())
    if not total:
        return UNDETERMINED, 0.0
    script = max(shares, key=lambda name: shares[name])
    share = shares[script] / total
    if script == "latin":
        code, confidence = _latin(sample)
        return code, confidence * share
    if script == "east":
        return ("ja" if kana > 0.08 * east else "zh"), share
    if script == "cyrillic":
        return _cyrillic(sample), share
    return (("fa" if re.search("[پچژگ]", sample) else "ar") if script == "arabic" else script), share


def _latin(sample: str) -> tuple[str, float]:
    words = _WORD.findall(sample.lower())
    if len(words) < 2:
        return UNDETERMINED, 0.0
    scores: Counter[str] = Counter()
    for word in words:
        for code in (languages := _LANGUAGES_OF.get(word, ())):
            scores[code] += 1.0 / len(languages)  # type: ignore[assignment]
    for letter, count in Counter(sample.lower()).items():
        for code in (languages := _LANGUAGES_OF_LETTER.get(letter, ())):
            scores[code] += 0.5 * count / len(languages)  # type: ignore[assignment]
    if not scores:
        return UNDETERMINED, 0.0
    (code, best), *others = scores.most_common(2)
    second = others[0][1] if others else 0.0
    if best < 0.06 * len(words) or best < 0.4:
        return UNDETERMINED, 0.0
    return code, (best - second) / best


def _cyrillic(sample: str) -> str:
    lower = sample.lower()
    if re.search("[іїєґ]", lower):
        return "uk"
    words = Counter(_WORD.findall(lower))
    bulgarian = sum(words[word] for word in ("се", "са", "ще", "от", "със", "да", "който", "че", "във", "е"))
    russian = sum(words[word] for word in ("и", "что", "не", "как", "это", "они", "для", "из", "быть", "его", "же"))
    return "bg" if bulgarian > russian and not re.search("[ыэ]", lower) else "ru"
