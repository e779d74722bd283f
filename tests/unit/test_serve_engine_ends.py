"""How answers end early: cancelled, late, failed, or with the engine."""

from __future__ import annotations

import threading

import pytest

from deepseek.errors import RequestError
from deepseek.serve.text.engine import Engine, EngineLimits, Event, Failed, Piece
from tests.engine_inbox import Inbox, drain, job
from tests.fake_serving import FakeModel


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
