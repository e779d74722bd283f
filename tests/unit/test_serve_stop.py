"""Stop strings against a plain definition: cut the whole text where the first stop string is complete."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepseek.serve.text.stop import StopMatcher

_TEXT = st.text(alphabet="ab语", max_size=30)
_STOPS = st.lists(st.text(alphabet="ab语", min_size=1, max_size=5), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character; stop as soon as what was read ends with a stop string."""
    for end in range(1, len(text) + 1):
        matching = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(matching)], True
    return text, False


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@given(_TEXT, _STOPS, st.lists(st.integers(0, 6), max_size=12))
def test_the_text_before_the_first_stop_string_however_it_is_cut(text, stops, sizes):
    matcher = StopMatcher(stops)
    shown = ""
    for piece in cut(text, sizes):
        shown += matcher.push(piece)
    shown += matcher.finish()
    assert (shown, matcher.stopped) == expected(text, stops)


@given(_TEXT, _STOPS, st.lists(st.integers(0, 6), max_size=12))
def test_nothing_is_shown_that_later_turns_out_to_be_stopped(text, stops, sizes):
    wanted, _ = expected(text, stops)
    matcher = StopMatcher(stops)
    shown = ""
    for piece in cut(text, sizes):
        shown += matcher.push(piece)
        assert wanted.startswith(shown)


@given(_TEXT, st.lists(st.integers(0, 6), max_size=12))
def test_without_stop_strings_nothing_is_held_back(text, sizes):
    matcher = StopMatcher([])
    for piece in cut(text, sizes):
        assert matcher.push(piece) == piece


def test_nothing_comes_after_the_stop():
    matcher = StopMatcher(["END"])
    assert matcher.push("beginEN") == "begin"
    assert matcher.push("D and more") == ""
    assert matcher.push("still more") == ""
    assert matcher.finish() == ""
