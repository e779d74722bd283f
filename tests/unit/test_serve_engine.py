"""The engine's schedule, step by step and on its thread: fairness, cancelling, limits, failures."""

from __future__ import annotations

import threading

import pytest

from deepseek.errors import RequestError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.engine import Done, Engine, EngineLimits, Event, Failed, Job, Piece
from tests.fake_serving import EOS, FakeModel


class Inbox:
    """Keeps events; `ended` is set with the last one of `answers` answers."""

    def __init__(self, answers: int = 1) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self._open = answers

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self._open -= 1
            if self._open == 0:
                self.ended.set()

    def text(self, index: int = 0) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece) and event.choice == index)

    def end(self, index: int = 0) -> Done | Failed:
        return next(event for event in self.events if event.choice == index and not isinstance(event, Piece))


def job(prompt: str = "abc", tokens: int = 8, **rest) -> Job:
    return Job(list(prompt.encode()), SamplingConfig(max_new_tokens=tokens), stop_ids=frozenset({EOS}), **rest)


def drain(engine: Engine) -> None:
    while engine.step():
        pass


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


def test_cancelling_frees_the_cache_within_one_step():
    model = FakeModel()
    engine, inbox, other = Engine(model), Inbox(), Inbox()
    ticket = engine.submit([job(tokens=1000)], inbox)
    engine.submit([job(tokens=4)], other)
    engine.step()
    assert model.open == 2
    ticket.cancel()
    engine.step()
    assert model.open == 1
    assert inbox.end().reason == "cancelled"
    drain(engine)
    assert other.text() == "cba3"
    assert engine.stats().cancelled == 1


def test_a_waiting_request_can_be_cancelled_and_never_runs():
    model = FakeModel()
    engine, inbox = Engine(model, EngineLimits(max_active=1)), Inbox()
    engine.submit([job("a", tokens=2)], Inbox())
    engine.submit([job("b", tokens=2)], inbox).cancel()
    drain(engine)
    assert inbox.end().reason == "cancelled"
    assert bytes(model.steps) == b"aa"


@pytest.mark.parametrize("failure", [RuntimeError("boom"), MemoryError()])
def test_a_crash_in_the_model_takes_only_its_own_request_down(failure):
    model = FakeModel()
    model.failure = failure
    engine, broken, fine = Engine(model), Inbox(), Inbox()
    engine.submit([job(tokens=9)], broken)
    for _ in range(3):
        engine.step()
    engine.submit([job(tokens=3)], fine)
    model.fail_at = 3  # the fourth token of the first request; the second has only three
    drain(engine)
    assert isinstance(broken.end(), Failed)
    assert fine.text() == "cba"
    assert (model.open, engine.stats().failed, engine.stats().finished) == (0, 1, 1)


@pytest.mark.parametrize("failure", [RuntimeError("boom"), MemoryError(), SystemExit(3)])
def test_a_step_that_crashes_fails_those_in_it_and_the_engine_goes_on(failure):
    model = FakeModel()
    engine, broken, waiting = Engine(model, EngineLimits(max_active=2)), Inbox(answers=2), Inbox()
    engine.submit([job(tokens=9), job(tokens=9)], broken)
    engine.submit([job(tokens=3)], waiting)
    engine.step()
    model.fail_step = failure
    engine.step()
    assert [type(broken.end(index)) for index in (0, 1)] == [Failed, Failed]
    assert engine.stats().blocks_used == 0
    drain(engine)
    assert waiting.text() == "cba"
    assert (model.open, engine.stats().failed, engine.stats().finished) == (0, 2, 1)


def test_a_runner_that_answers_for_others_than_planned_fails_the_step_only():
    class Swapped(FakeModel):
        def runner(self, limits):
            runner = super().runner(limits)
            run = runner.run
            runner.run = lambda plan: run(plan)[::-1]
            return runner

    engine, broken = Engine(Swapped()), Inbox(answers=2)
    engine.submit([job("ab"), job("xy")], broken)
    drain(engine)
    assert all("answered for sequences" in str(broken.end(index).error) for index in (0, 1))
    fine = Inbox()
    engine.submit([job("ab", tokens=2)], fine)
    drain(engine)
    assert fine.text() == "ba"


def test_a_decoder_that_fails_takes_only_its_own_answer_down():
    class Picky(FakeModel):
        def text_stream(self):
            stream = super().text_stream()
            push = stream.push
            stream.push = lambda token: push(token) if token != ord("!") else 1 // 0
            return stream

    engine, broken, fine = Engine(Picky()), Inbox(), Inbox()
    engine.submit([job("!a", tokens=9)], broken)
    engine.submit([job("ab", tokens=9)], fine)
    drain(engine)
    assert isinstance(broken.end().error, ZeroDivisionError)
    assert fine.text() == "ba2ba2ba2"
    assert engine.stats().blocks_used == 0


def test_a_request_that_takes_too_long_fails_with_504_running_or_waiting():
    now = [0.0]
    engine = Engine(FakeModel(), EngineLimits(max_active=1, request_seconds=10), clock=lambda: now[0])
    running, waiting = Inbox(), Inbox()
    engine.submit([job(tokens=1000)], running)
    engine.submit([job(tokens=1000)], waiting)
    engine.step()
    now[0] = 10.5
    engine.step()
    assert [inbox.end().error.status for inbox in (running, waiting)] == [504, 504]
    assert not engine.step()


def test_an_answer_that_is_cancelled_and_late_ends_once():
    now = [0.0]
    engine, inbox = Engine(FakeModel(), EngineLimits(request_seconds=10), clock=lambda: now[0]), Inbox()
    ticket = engine.submit([job(tokens=1000)], inbox)
    engine.step()
    now[0] = 10.5
    ticket.cancel()
    assert not engine.step()
    assert len([event for event in inbox.events if not isinstance(event, Piece)]) == 1
    assert engine.stats().blocks_used == 0


def test_a_request_that_is_cancelled_while_its_last_token_is_told_is_complete():
    engine, inbox = Engine(FakeModel()), Inbox()

    def hang_up_at_the_end(event: Event) -> None:
        inbox(event)
        if inbox.text() == "cba3":
            ticket.cancel()

    ticket = engine.submit([job(tokens=4)], hang_up_at_the_end)
    drain(engine)
    assert not engine.step()
    assert inbox.end().reason == "length"
    assert (engine.stats().finished, engine.stats().cancelled) == (1, 0)


def test_times_are_measured_from_the_submission():
    now = [100.0]
    engine, inbox = Engine(FakeModel(), clock=lambda: now[0]), Inbox()
    engine.submit([job(tokens=3)], inbox)
    for _ in range(3):
        now[0] += 2.0
        engine.step()
    assert (inbox.end().first_token_seconds, inbox.end().seconds) == (2.0, 6.0)


def test_a_sink_that_raises_cancels_only_its_own_answer():
    def broken(event: Event) -> None:
        raise RuntimeError("event loop is closed")

    model = FakeModel()
    engine, fine = Engine(model), Inbox()
    engine.submit([job(tokens=1000)], broken)
    engine.submit([job(tokens=4)], fine)
    drain(engine)
    assert fine.text() == "cba3"
    assert model.open == 0


def test_the_worker_thread_serves_and_sleeps_and_serves_again():
    engine = Engine(FakeModel())
    engine.start()
    try:
        for _ in range(3):
            inbox = Inbox()
            engine.submit([job(tokens=4)], inbox)
            assert inbox.ended.wait(10)
            assert inbox.text() == "cba3"
    finally:
        engine.close()


def test_an_error_of_the_schedule_fails_what_runs_and_the_worker_serves_on():
    model = FakeModel(step_seconds=0.001)
    engine, broken, fine = Engine(model), Inbox(answers=2), Inbox()
    engine.submit([job(tokens=100), job(tokens=100)], broken)
    engine._scheduler.commit = lambda: 1 // 0
    engine._scheduler.abandon = lambda: 1 // 0
    engine.start()
    try:
        assert broken.ended.wait(10)
        engine.submit([job(tokens=4)], fine)
        assert fine.ended.wait(10)
    finally:
        engine.close()
    assert [type(broken.end(index).error) for index in (0, 1)] == [ZeroDivisionError] * 2
    assert (fine.text(), model.open, engine.stats().blocks_used) == ("cba3", 0, 0)


def test_closing_lets_running_requests_finish_and_refuses_new_ones():
    model = FakeModel()
    model.may_step.clear()
    engine, inbox = Engine(model), Inbox()
    engine.start()
    engine.submit([job(tokens=4)], inbox)
    closer = threading.Thread(target=engine.close, kwargs={"drain_seconds": 30.0})
    closer.start()
    while not engine._closing:
        pass
    with pytest.raises(RequestError) as refusal:
        engine.submit([job()], Inbox())
    model.may_step.set()
    closer.join(10)
    assert refusal.value.status == 503
    assert inbox.text() == "cba3"


def test_closing_without_time_to_drain_fails_what_runs_with_503():
    model = FakeModel(step_seconds=0.01)
    engine, inbox = Engine(model), Inbox()
    engine.start()
    engine.submit([job(tokens=1000)], inbox)
    engine.close(drain_seconds=0.05)
    assert inbox.end().error.status == 503
    assert model.open == 0


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
