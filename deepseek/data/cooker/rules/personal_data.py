"""Rule `personal_data`: e-mail addresses, telephone, identity-card and payment-card numbers, and IP addresses.

Numbers with a check digit must pass it: cards by Luhn (ISO/IEC 7812-1 annex B), Chinese identity cards by GB 11643-1999
(ISO 7064 MOD 11-2) and a real date of birth. A screen, not a promise: names and postal addresses are not looked for.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from deepseek.data.cooker.config import PersonalDataConfig
from deepseek.data.cooker.draft import Change, Draft, Drop

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def luhn(number: str) -> bool:
    """Return whether the digits of `number` pass the Luhn check."""
    total = 0
    for place, digit in enumerate(reversed([int(character) for character in number if character.isdecimal()])):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def chinese_id(number: str) -> bool:
    """Return whether 18 characters are a Chinese identity number: check character and date of birth are right."""
    remainder = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number[:17], strict=True)) % 11
    if "10X98765432"[remainder] != number[17].upper():
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return 1900 <= born.year <= 2100


def _card(number: str) -> bool:
    digits = [character for character in number if character.isdecimal()]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(number)


def _number(text: str) -> bool:
    return 8 <= sum(map(str.isdecimal, text)) <= 15


def _ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return text.count(":") >= 2 and len(text) > 4


def _always(_: str) -> bool:
    return True


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_KINDS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    (
        "email",
        r"(?<![\w.+-])[A-Za-z0-9_][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])",
        _always,
    ),
    ("id_card", r"(?<![0-9A-Za-z])[1-9][0-9]{16}[0-9Xx](?![0-9A-Za-z])", chinese_id),
    (
        "bank_card",
        r"(?<![0-9A-Za-z.])(?:[2-6][0-9]{3}([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{1,3})?"
        r"|3[47][0-9]{2}([ -]?)[0-9]{6}\2[0-9]{5})(?![0-9A-Za-z])",
        _card,
    ),
    ("ip", rf"(?<![0-9A-Za-z.])(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9A-Za-z]|\.[0-9])", _always),
    ("ip", r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])", _ipv6),
    ("phone", r"(?<![0-9A-Za-z])(?:(?:\+|00)86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9A-Za-z])", _always),
    ("phone", r"(?<![0-9A-Za-z])0[1-9][0-9]{1,2}-[0-9]{7,8}(?![0-9A-Za-z-])", _always),
    (
        "phone",
        r"(?<![0-9A-Za-z])(?:\+1[ .-]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])"
        r"[2-9][0-9]{2}[ .-][0-9]{4}(?![0-9A-Za-z])",
        _always,
    ),
    ("phone", r"(?<![0-9A-Za-z])\+[1-9][0-9]{0,2}(?:[ -]?\(?[0-9]{1,4}\)?){2,6}(?![0-9A-Za-z.])", _number),
)
_PATTERNS = tuple((kind, re.compile(pattern, re.ASCII), valid) for kind, pattern, valid in _KINDS)
_POSSIBLE = re.compile(r"@|[0-9](?:[ ().+-]{0,3}[0-9]){6}|:[0-9A-Fa-f]{0,4}:", re.ASCII)


def find_personal_data(text: str, kinds: frozenset[str] | None = None) -> list[tuple[int, int, str]]:
    """Return `(start, end, kind)` of what looks like personal data, in order and without overlap.

    Kinds: email, id_card, bank_card, ip, phone; None is all. Linear in the text's length.
    """
    if not _POSSIBLE.search(text):
        return []
    found: list[tuple[int, int, str]] = []
    for kind, pattern, valid in _PATTERNS:
        if kinds is not None and kind not in kinds:
            continue
        for match in pattern.finditer(text):
            start, end = match.span()
            if valid(match[0]) and all(end <= other[0] or start >= other[1] for other in found):
                found.append((start, end, kind))
    return sorted(found)


@dataclass(frozen=True)
class PersonalData:
    """Masks what is found as `[EMAIL]`, drops the document, or only counts it."""

    config: PersonalDataConfig
    name = "personal_data"

    def apply(self, draft: Draft) -> Change | Drop | None:
        """Return the masked texts or the reason to drop; the value counts what was found, by kind."""
        kinds = frozenset(self.config.kinds)
        found = [find_personal_data(text, kinds) for text in draft.texts]
        counts: dict[str, int] = {}
        for _, _, kind in (place for places in found for place in places):
            counts[kind] = counts.get(kind, 0) + 1
        if not counts:
            return None
        value = ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))
        if self.config.action == "drop":
            return Drop("personal data", value)
        if self.config.action == "keep":
            return Change(draft.texts, "personal data kept", value)
        return Change(tuple(map(_masked, draft.texts, found)), "personal data masked", value)


def _masked(text: str, found: list[tuple[int, int, str]]) -> str:
    parts, done = [], 0
    for start, end, kind in found:
        parts += [text[done:start], f"[{kind.upper()}]"]
        done = end
    return "".join([*parts, text[done:]])
