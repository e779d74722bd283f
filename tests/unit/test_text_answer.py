"""The text of an answer and its tokens' probabilities, against the whole text cut once at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepseek.serve.text.answer_text import AnswerText
from deepseek.serve.text.plan import TokenLogprob
from tests.fake_serving import ByteStream


def cut(text: str, stops: tuple[str, ...]) -> str:
    """Return the text before the stop string that is complete first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        if matching := [len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(matching)]
    return text


_STOPS = st.lists(st.text("ab语", min_size=1, max_size=3), max_size=3).map(tuple)


@given(st.text("ab语🙂", max_size=12), st.integers(0, 3), _STOPS, st.booleans())
def test_text_and_logprobs_agree_at_every_moment(text, missing, stops, streaming):
    tokens = text.encode()
    tokens = tokens[: max(0, len(tokens) - missing)]  # the last character may be cut
    answer, shown, told = AnswerText(ByteStream(), stops, streaming=streaming), "", b""
    for token in tokens:
        answer.push(token, TokenLogprob(token, -1.0, ()))
        piece = answer.pop()
        assert streaming or piece == ("", ())
        shown += piece.text
        told += bytes(logprob.token for logprob in piece.logprobs)
        assert told.decode() == shown
        if answer.stopped:
            break
    answer.finish()
    piece = answer.pop(last=True)
    shown += piece.text
    told += bytes(logprob.token for logprob in piece.logprobs)
    assert shown == cut(tokens.decode(errors="replace"), stops)
    assert told.decode(errors="replace") == shown


class WordStream:
    """Tokens are words."""

    def push(self, token_id: int, /) -> str:
        return ["one", " two", " three", ""][token_id]

    def finish(self) -> str:
        return ""


def numbers(tokens: list[int], stops: tuple[str, ...]) -> list[list[int]]:
    answer, found = AnswerText(WordStream(), stops, streaming=True), []
    for token in tokens:
        answer.push(token, TokenLogprob(token, -1.0, ()))
        if answer.stopped:
            break
        found.append([logprob.token for logprob in answer.pop().logprobs])
    answer.finish()
    return [*found, [logprob.token for logprob in answer.pop(last=True).logprobs]]


def test_a_token_is_told_when_all_of_its_text_is_shown():
    assert numbers([0, 1, 2], ("zz",)) == [[0], [1], [2], []]
    assert numbers([0, 1, 2], ("o three",)) == [[0], [], [1]]  # of " two" is shown " tw" only, in two pieces


def test_a_token_of_which_nothing_is_shown_is_not_told():
    assert numbers([0, 1, 2], (" two",)) == [[0], []]


def test_a_token_without_text_is_told_with_the_next_text():
    assert numbers([0, 3, 1], ()) == [[0], [], [3, 1], []]
