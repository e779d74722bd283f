"""Text to ids: the parts of a text through the library, with what is known already kept from it.

Not here: what users call (`tokenizer`), how text is cut (`pretokenize`), which kinds there are (`tokenizer_format`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import tokenizers

from deepseek.data.pretokenize import WORD, batches
from deepseek.data.special_tokens import Segment
from deepseek.errors import TokenizerError

_MAX_KNOWN_WORDS = 1 << 17
_MAX_KNOWN_LENGTH = 64
_MAX_DEPTH = 8
_LONG_WORDS = 16  # characters: text whose words are longer on average has few that come again
_LOOKED_AT = 512


class Encoder:
    """The encoding half of a tokenizer.

    `special` are the special tokens with their ids; `unspoken` those of the ids that no text may give. For our own
    kind (`own`) words met before come from memory, and long texts are cut, since both change nothing there.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, *, own: bool, special: Mapping[str, int], unspoken: frozenset[int]
    ) -> None:
        library.encode_special_tokens = True
        self._library = library
        self._later = _without_prefix(library, "first")
        self._own = own
        self._special = special
        self._unspoken = unspoken
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; special tokens in it are text. Raises TokenizerError."""
        return self._encode_texts(texts, self._library)

    def encode_segments(self, parts: list[list[Segment]]) -> list[tuple[list[int], list[bool]]]:
        """Return the ids of segments that follow each other, and for each id whether it is learned."""
        # only what stands at the very beginning may get a prefix, where the tokenizer has one
        openings = [part[0].text for part in parts if part and not part[0].special]
        others = [one.text for part in parts for place, one in enumerate(part) if place and not one.special]
        first = iter(self._encode_texts(openings, self._library))
        later = iter(self._encode_texts(others, self._later))
        encoded = []
        for part in parts:
            ids: list[int] = []
            learned: list[bool] = []
            for place, segment in enumerate(part):
                if segment.special:
                    new = [self._special[segment.text]]
                else:
                    new = next(later if place else first)
                ids += new
                learned += _learned(segment, new, self._later if place else self._library)
            encoded.append((ids, learned))
        return encoded

    def around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer sets before and after a text."""
        encoding = self._library.encode("a", add_special_tokens=True)
        marks = encoding.special_tokens_mask
        before = marks.index(0) if 0 in marks else len(marks)
        after = marks[::-1].index(0) if 0 in marks else 0
        return encoding.ids[:before], encoding.ids[len(marks) - after :]

    def _encode_texts(self, texts: Sequence[str], library: tokenizers.Tokenizer) -> list[list[int]]:
        own = self._own
        encoded: list[list[int]] = [[] for _ in texts]
        for owners, parts in batches(texts, cut=own):
            found = self._encode_own(parts) if own else self._encode_other(parts, library)
            for owner, ids in zip(owners, found, strict=True):
                if encoded[owner]:
                    encoded[owner] += ids
                else:
                    encoded[owner] = ids
        return encoded

    def _encode_own(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; words met before come from memory, others from the library, once each."""
        long = [_has_long_words(text) for text in texts]
        whole = iter(_ids(self._library, list(itertools.compress(texts, long))))
        by_word = iter(self._encode_words([text for text, is_long in zip(texts, long, strict=True) if not is_long]))
        return [next(whole if is_long else by_word) for is_long in long]

    def _encode_words(self, texts: list[str]) -> list[list[int]]:
        if len(self._known) > _MAX_KNOWN_WORDS:
            self._known = {}  # another thread may still be reading the old one
        known = self._known
        words = [WORD.findall(text) for text in texts]
        missing = list({word: None for text in words for word in text if word not in known})
        found = dict(zip(missing, _ids(self._library, missing), strict=True))
        known.update((word, ids) for word, ids in found.items() if len(word) <= _MAX_KNOWN_LENGTH)
        encoded = []
        for text_words in words:
            ids: list[int] = []
            for word in text_words:
                ids += known.get(word) or found[word]
            encoded.append(ids)
        return encoded

    def _encode_other(self, texts: list[str], library: tokenizers.Tokenizer, depth: int = 0) -> list[list[int]]:
        """Return the ids of each text; a special token that the model itself makes out of text is broken up."""
        encoded = _ids(library, texts)
        for place, ids in enumerate(encoded):
            if not self._unspoken.isdisjoint(ids):
                encoded[place] = self._encode_broken(texts[place], library, depth)
        return encoded

    @functools.cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The tokenizer for text that goes on inside a word."""
        return _without_prefix(self._library, "first", "always")

    def _encode_broken(self, text: str, library: tokenizers.Tokenizer, depth: int) -> list[int]:
        """Return the ids of a text that is cut inside whatever the model takes for a special token."""
        encoding = library.encode(text, add_special_tokens=False)
        spans = [span for index, span in zip(encoding.ids, encoding.offsets, strict=True) if index in self._unspoken]
        if depth == _MAX_DEPTH or any(end - begin < 2 for begin, end in spans):
            raise TokenizerError(
                "the tokenizer makes a special token out of plain text",
                found=f"{text[slice(*spans[0])]!r:.80} at character {spans[0][0]}",
                fix="leave it out of the text, or allow it with allowed_special",
            )
        cuts = [0, *(begin + 1 for begin, _ in spans), len(text)]
        parts = [text[begin:end] for begin, end in itertools.pairwise(cuts)]
        rest = self._encode_other(parts[1:], self._inside, depth + 1)
        return [*self._encode_other(parts[:1], library, depth + 1)[0], *itertools.chain.from_iterable(rest)]


def _has_long_words(text: str) -> bool:
    """Return whether a text's beginning has long words, as Chinese has: they hardly come again, so none is kept."""
    start = text[:_LOOKED_AT]
    return len(start) > _LONG_WORDS * len(WORD.findall(start))


def _ids(library: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in library.encode_batch_fast(texts, add_special_tokens=False)]


def _without_prefix(library: tokenizers.Tokenizer, *schemes: str) -> tokenizers.Tokenizer:
    """Return the tokenizer for text that stands behind something: nothing is set before its first word."""
    text = changed = library.to_str()
    for scheme in schemes:
        changed = changed.replace(f'"prepend_scheme":"{scheme}"', '"prepend_scheme":"never"')
    if changed == text:
        return library
    later = tokenizers.Tokenizer.from_str(changed)
    later.encode_special_tokens = True
    return later


def _learned(segment: Segment, ids: list[int], library: tokenizers.Tokenizer) -> list[bool]:
    """Return for each id of a segment whether a character of it is to be learned."""
    if not segment.learned:
        return [False] * len(ids)
    if segment.special or segment.learned == ((0, len(segment.text)),):
        return [True] * len(ids)
    offsets = library.encode(segment.text, add_special_tokens=False).offsets
    return [any(begin < stop and end > start for start, stop in segment.learned) for begin, end in offsets]
