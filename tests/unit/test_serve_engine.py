"""The engine's answers, step by step: texts, stop strings, turns, log-probabilities, shared prompts, counters."""

from __future__ import annotations

import pytest

from deepseek.errors import RequestError
from deepseek.serve.text.engine import Engine, EngineLimits, Failed
from tests.engine_inbox import Inbox, drain, job
from tests.fake_serving import FakeModel


def test_an_answer_has_its_text_its_token_count_and_its_reason():
    engine, inbox = Engine(FakeModel()), Inbox()
    engine.submit([job("abc", tokens=6)], inbox)
    drain(engine)
    assert inbox.text() == "cba3cb"
    assert (inbox.end().reason, inbox.end().tokens) == ("length", 6)


def test_an_end_token_stops_and_is_no_part_of_the_text():
    engine, inbox = Engine(FakeModel("hello", end=True)), Inbox()
    engine.submit([job(tokens=50)], inbox)
    drain(engine)
    assert inbox.text() == "hello"
    assert (inbox.end().reason, inbox.end().tokens) == ("stop", 6)


def test_a_model_that_simply_ends_has_stopped():
    class Short(FakeModel):
        def says(self, prompt_ids, count, sampling):
            return b"xy"[count] if count < 2 else None

    engine, inbox = Engine(Short()), Inbox()
    engine.submit([job(tokens=50)], inbox)
    drain(engine)
    assert (inbox.text(), inbox.end().reason, inbox.end().tokens) == ("xy", "stop", 2)


def test_a_character_of_several_tokens_comes_whole():
    engine, inbox = Engine(FakeModel("语🙂")), Inbox()
    engine.submit([job(tokens=7)], inbox)
    drain(engine)
    assert [event.text for event in inbox.events[:-1]] == ["语", "🙂"]


def test_a_cut_character_becomes_a_replacement_character_not_an_error():
    engine, inbox = Engine(FakeModel("语🙂")), Inbox()
    engine.submit([job(tokens=5)], inbox)
    drain(engine)
    assert inbox.text() == "语\N{REPLACEMENT CHARACTER}"


def test_stop_strings_cut_before_them_and_free_the_cache():
    model = FakeModel("one two three ")
    engine, inbox = Engine(model), Inbox()
    engine.submit([job(tokens=50, stop=("two", "zzz"))], inbox)
    drain(engine)
    assert inbox.text() == "one "
    assert (inbox.end().reason, inbox.end().tokens, model.open) == ("stop", 7, 0)


def test_the_beginning_of_a_stop_string_is_shown_when_the_answer_ends_there():
    engine, inbox = Engine(FakeModel("one two three ")), Inbox()
    engine.submit([job(tokens=6, stop=("two",))], inbox)
    drain(engine)
    assert (inbox.text(), inbox.end().reason) == ("one tw", "length")


def test_without_streaming_the_same_text_comes_in_one_piece():
    for rest in ({}, {"stop": ("tw",)}, {"stop": ("o",)}):
        streamed, whole = Inbox(), Inbox()
        engine = Engine(FakeModel("one two three "))
        engine.submit([job(tokens=11, **rest)], streamed)
        engine.submit([job(tokens=11, stream=False, **rest)], whole)
        drain(engine)
        assert whole.text() == streamed.text()
        assert len(whole.events) <= 2
        assert (whole.end().reason, whole.end().tokens) == (streamed.end().reason, streamed.end().tokens)


def test_requests_take_turns_token_by_token():
    model = FakeModel()
    engine = Engine(model)
    for prompt in "abc":
        engine.submit([job(prompt, tokens=4)], Inbox())
    drain(engine)
    assert bytes(model.steps).decode() == "abc" * 4


def test_a_short_request_is_done_long_before_a_long_one_that_came_first():
    engine, long, short = Engine(FakeModel()), Inbox(), Inbox()
    engine.submit([job("l", tokens=1000)], long)
    engine.step()
    engine.submit([job("s", tokens=3)], short)
    for _ in range(3):
        engine.step()
    assert short.ended.is_set()
    assert not long.ended.is_set()


def test_no_more_than_max_active_run_and_the_others_wait_their_turn():
    model = FakeModel()
    engine = Engine(model, EngineLimits(max_active=2))
    inboxes = [Inbox() for _ in range(5)]
    for inbox in inboxes:
        engine.submit([job(tokens=3)], inbox)
    most = 0
    while engine.step():
        most = max(most, model.open)
    assert most <= 2
    assert all(inbox.text() == "cba" for inbox in inboxes)


def test_results_do_not_depend_on_who_else_is_served():
    prompts = ["first", "second one", "third"]
    solo = []
    for prompt in prompts:
        engine, inbox = Engine(FakeModel()), Inbox()
        engine.submit([job(prompt, tokens=30)], inbox)
        drain(engine)
        solo.append(inbox.text())
    engine, inboxes = Engine(FakeModel()), [Inbox() for _ in prompts]
    for prompt, inbox in zip(prompts, inboxes, strict=True):
        engine.submit([job(prompt, tokens=30)], inbox)
    drain(engine)
    assert [inbox.text() for inbox in inboxes] == solo


def test_a_full_queue_refuses_with_429_and_recovers():
    engine = Engine(FakeModel(), EngineLimits(max_active=1, max_queue=2))
    for _ in range(2):
        engine.submit([job(tokens=1)], Inbox())
    with pytest.raises(RequestError) as refusal:
        engine.submit([job(tokens=1)], Inbox())
    assert refusal.value.status == 429
    assert engine.retry_after() >= 1
    assert engine.stats().refused == 1
    drain(engine)
    engine.submit([job(tokens=1)], Inbox())


def test_a_request_of_several_answers_is_taken_whole_or_not_at_all():
    engine = Engine(FakeModel(), EngineLimits(max_active=1, max_queue=2))
    with pytest.raises(RequestError):
        engine.submit([job(), job(), job()], Inbox())
    assert engine.stats().waiting == 0


def test_several_answers_of_one_request_are_told_apart():
    engine, inbox = Engine(FakeModel()), Inbox(answers=2)
    engine.submit([job("ab", tokens=3), job("xy", tokens=3)], inbox)
    drain(engine)
    assert (inbox.text(0), inbox.text(1)) == ("ba2", "yx2")


def test_a_constraint_that_is_complete_ends_the_answer():
    model = FakeModel()
    engine, inbox = Engine(model), Inbox()
    engine.submit([job(tokens=50, constraint=model.constraint(None))], inbox)
    drain(engine)
    assert (inbox.text(), inbox.end().reason, inbox.end().tokens) == ('{"answer": 1}', "stop", 13)


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_come_with_the_text_of_their_tokens(stream):
    engine, inbox = Engine(FakeModel("语tw one two")), Inbox()
    engine.submit([job(tokens=50, stop=("two",), logprobs=2, stream=stream)], inbox)
    drain(engine)
    pieces = inbox.events[:-1]
    tokens, text = b"", ""
    for piece in pieces:
        tokens += bytes(logprob.token for logprob in piece.logprobs)
        text += piece.text
        assert tokens.decode() == text
    assert text == "语tw one "
    assert [len(logprob.top) for piece in pieces for logprob in piece.logprobs] == [2] * 10


def test_a_request_that_can_never_fit_the_pages_is_refused_and_one_that_just_fits_is_served():
    model = FakeModel(num_blocks=2)
    engine, inbox = Engine(model, EngineLimits(block_size=4)), Inbox()
    for prompt, tokens, field in (("abc", 7, "max_tokens"), ("abcdefgh", 2, "prompt")):
        with pytest.raises(RequestError) as refusal:
            engine.submit([job("a", tokens=1), job(prompt, tokens=tokens)], inbox)
        assert (refusal.value.status, refusal.value.field) == (400, field)
        assert "at most 9" in str(refusal.value)
    with pytest.raises(RequestError, match="no tokens"):
        engine.submit([job("")], inbox)
    assert engine.stats().waiting == 0
    engine.submit([job("abc", tokens=6)], inbox)
    drain(engine)
    assert inbox.text() == "cba3cb"


def test_a_prompt_that_was_there_before_is_not_computed_again():
    engine = Engine(FakeModel(), EngineLimits(block_size=4))
    cached = []
    for prompt in ("abcdefghij", "abcdefghij", "abcdefgh", "abcdxxxxxx", "xbcdefghij"):
        inbox = Inbox()
        engine.submit([job(prompt, tokens=3)], inbox)
        drain(engine)
        assert inbox.text() == prompt[::-1][:3]
        cached.append(inbox.end().cached_tokens)
    assert cached == [0, 8, 4, 4, 0]
    assert engine.stats().cached_tokens == 16


@pytest.mark.parametrize("whole_step", [True, False])
def test_pages_of_what_failed_are_not_used_again(whole_step):
    model = FakeModel()
    engine, broken = Engine(model, EngineLimits(block_size=4)), Inbox()
    if whole_step:
        model.fail_step = RuntimeError("boom")
    else:
        model.fail_at = 0
    engine.submit([job("abcdefghij", tokens=3)], broken)
    engine.step()
    model.fail_at = None
    engine.submit([job("abcdefghij", tokens=3)], fine := Inbox())
    drain(engine)
    assert isinstance(broken.end(), Failed)
    assert (fine.text(), fine.end().cached_tokens) == ("jih", 0)


def test_what_an_answer_said_is_there_for_the_next_turn():
    engine = Engine(FakeModel("0123456789"), EngineLimits(block_size=4))
    inbox = Inbox()
    engine.submit([job("ab", tokens=10)], inbox)
    drain(engine)
    engine.submit([job("ab" + inbox.text() + " and", tokens=1)], next_turn := Inbox())
    drain(engine)
    assert next_turn.end().cached_tokens == 8  # of ab0123456789 the last token was never computed


def test_tenants_do_not_share_pages():
    engine = Engine(FakeModel(), EngineLimits(block_size=4))
    cached = []
    for salt in ("a", "b", None, "a"):
        inbox = Inbox()
        engine.submit([job("abcdefghij", tokens=1, salt=salt)], inbox)
        drain(engine)
        cached.append(inbox.end().cached_tokens)
    assert cached == [0, 0, 0, 8]


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_answers_of_one_request_share_their_prompts_pages(prefix_cache):
    model = FakeModel()
    engine, inbox = Engine(model, EngineLimits(block_size=4, prefix_cache=prefix_cache)), Inbox(answers=3)
    engine.submit([job("abcdefghij", tokens=2)] * 3, inbox)
    for _ in range(2):
        engine.step()
    assert engine.stats().blocks_used == 2 + 2  # the first one is done: two full pages, and one each for the others
    drain(engine)
    assert [inbox.text(choice) for choice in range(3)] == ["ji"] * 3
    assert [inbox.end(choice).cached_tokens for choice in range(3)] == [0, 8, 8]
    inbox = Inbox(answers=2)
    engine.submit([job("abcdefghij", tokens=2)] * 2, inbox)
    drain(engine)
    assert [inbox.end(choice).cached_tokens for choice in range(2)] == [8 if prefix_cache else 0, 8]


def test_counters_add_up():
    engine = Engine(FakeModel())
    engine.submit([job("abcd", tokens=3), job("abcd", tokens=5)], Inbox(answers=2))
    drain(engine)
    stats = engine.stats()
    assert (stats.finished, stats.prompt_tokens, stats.generated_tokens) == (2, 8, 8)
    assert (stats.waiting, stats.active, stats.batch_size) == (0, 0, 0)
    assert (stats.blocks_used, stats.blocks_total, stats.preemptions) == (0, 8 * 256, 0)


def test_the_load_of_the_moment_is_told():
    engine = Engine(FakeModel(), EngineLimits(max_active=2, block_size=4))
    engine.submit([job("abcdef", tokens=9) for _ in range(3)], Inbox(answers=3))
    engine.submit([job("xy", tokens=9)], Inbox())
    engine.step()
    stats = engine.stats()
    assert (stats.waiting, stats.active, stats.batch_size, stats.blocks_used) == (2, 2, 2, 3)
