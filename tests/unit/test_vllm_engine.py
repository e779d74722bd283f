"""vLLM as an engine, against a stand-in of its interface: the events of our own, cancelling, limits, failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from deepseek.errors import RequestError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.constraint import JsonConstraint
from deepseek.serve.text.engine import Done, Engine, EngineLimits, Event, Failed, Job, Piece
from deepseek.serve.text.plan import Sampling
from deepseek.serve.text.vllm_engine import VllmEngine
from deepseek.serve.text.vllm_library import load_vllm
from tests import fake_vllm
from tests.fake_serving import EOS, FakeModel

Made = Callable[..., tuple[VllmEngine, fake_vllm.AsyncLLMEngine]]


class Inbox:
    def __init__(self, answers: int = 1) -> None:
        self.events: list[Event] = []
        self.begun, self.ended = threading.Event(), threading.Event()
        self._open = answers

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        self._open -= not isinstance(event, Piece)
        if not self._open:
            self.ended.set()

    def wait(self) -> Inbox:
        assert self.ended.wait(30)
        return self

    def told(self, index: int = 0) -> tuple[Any, ...]:
        """Return text, probabilities and end of an answer, without the times."""
        pieces = [event for event in self.events if isinstance(event, Piece) and event.choice == index]
        end = self.end(index)
        assert isinstance(end, Done), end
        told = [logprob for piece in pieces for logprob in piece.logprobs]
        return "".join(piece.text for piece in pieces), told, end.reason, end.tokens

    def end(self, index: int = 0) -> Done | Failed:
        return next(event for event in self.events if event.choice == index and not isinstance(event, Piece))

    def error(self, index: int = 0) -> Exception:
        end = self.end(index)
        assert isinstance(end, Failed)
        return end.error


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    fake_vllm.install(monkeypatch)
    engines: list[VllmEngine] = []

    def make(model: FakeModel | None = None, *, start: bool = True, **limits: Any) -> Any:
        said = model or FakeModel("abcdef")

        def says(prompt: Sequence[int], count: int, params: fake_vllm.SamplingParams) -> int:
            token = said.says(prompt, count, Sampling(SamplingConfig(seed=params.seed)))
            return EOS if token is None else token

        client = fake_vllm.AsyncLLMEngine(says=says)
        engines.append(VllmEngine(said, load_vllm(), client, EngineLimits(**limits)))
        if start:
            engines[-1].start()
        return engines[-1], client

    yield make
    for engine in engines:
        engine.close()
        assert engine.stats().active == 0


def job(prompt: str = "abc", tokens: int = 8, **rest: Any) -> Job:
    return Job(list(prompt.encode()), SamplingConfig(max_new_tokens=tokens), stop_ids=frozenset({EOS}), **rest)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize(
    "rest",
    [{}, {"stop": ("ef", "d")}, {"stop": ("fa",)}, {"stream": False}, {"stop": ("语x",), "tokens": 7}, {"tokens": 1}],
    ids=str,
)
@pytest.mark.parametrize("script", ["abcdef", "a语🙂b"])
def test_answers_are_those_of_our_own_engine(made: Made, script: str, rest: dict[str, Any], at_once: int) -> None:
    engine, client = made(FakeModel(script, end=True))
    client.at_once = at_once
    jobs = [job(**rest), job(**rest)._replace(stop_ids=frozenset({EOS, ord("b")}))]
    found, wanted, own = Inbox(2), Inbox(2), Engine(FakeModel(script, end=True))
    engine.submit(jobs, found)
    own.submit(jobs, wanted)
    while own.step():
        pass
    found.wait()
    assert [found.told(index) for index in (0, 1)] == [wanted.told(index) for index in (0, 1)]


def test_a_jobs_settings_reach_vllm(made: Made) -> None:
    engine, client = made()
    sampling = SamplingConfig(
        max_new_tokens=3, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1, seed=(1 << 63) - 1
    )
    asked = Job([1, 2], sampling, ("stop",), frozenset({7, 3}), logprobs=2, salt="tenant")
    inbox = Inbox(2)
    engine.submit([asked, asked._replace(sampling=SamplingConfig(do_sample=False), salt=None)], inbox)
    inbox.wait()
    assert client.prompts == [
        {"type": "token", "prompt_token_ids": [1, 2], "cache_salt": "tenant"},
        {"type": "token", "prompt_token_ids": [1, 2]},
    ]
    assert client.params[0] == fake_vllm.SamplingParams(
        max_tokens=3, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1, seed=(1 << 63) - 1, logprobs=2,
        stop_token_ids=[3, 7], ignore_eos=True, detokenize=False, output_kind=fake_vllm.RequestOutputKind.DELTA,
    )  # fmt: skip
    assert (client.params[1].temperature, client.params[1].seed) == (0.0, None)


@pytest.mark.parametrize("top", [0, 2, 4])
def test_probabilities_name_the_chosen_token_whatever_its_rank(made: Made, top: int) -> None:
    engine, client = made()
    client.at_once = 2
    inbox = Inbox()
    engine.submit([job(tokens=3, logprobs=top)], inbox)
    text, told, _, _ = inbox.wait().told()
    assert text == "abc" and [chr(one.token) for one in told] == ["a", "b", "c"]
    assert [one.logprob for one in told] == [-1.5] * 3
    assert told[0].top == tuple((97 + 3 - rank, -0.5 * rank) for rank in range(1, top + 1))


def test_seeds_of_several_answers_are_their_own(made: Made) -> None:
    engine, _ = made()
    inbox = Inbox(3)
    jobs = [Job([97], SamplingConfig(max_new_tokens=3, seed=seed)) for seed in (0, 1, 5)]
    engine.submit(jobs, inbox)
    inbox.wait()
    assert [inbox.told(index)[0] for index in range(3)] == ["abc", "bcd", "fab"]


def test_an_answer_bound_to_a_schema_ends_with_it(made: Made) -> None:
    engine, client = made(FakeModel('{"a":1}', end=True))
    inbox, constraint = Inbox(), JsonConstraint(None, '{"type": "object"}')
    engine.submit([job(tokens=50, constraint=constraint)._replace(stop_ids=frozenset())], inbox)
    inbox.wait()
    assert inbox.told() == ('{"a":1}', [], "stop", 7)
    assert client.params[0].structured_outputs == fake_vllm.StructuredOutputsParams(json='{"type": "object"}')
    assert client.params[0].ignore_eos is False


def test_a_schema_that_vllm_refuses_is_the_requests_fault(made: Made) -> None:
    engine, _ = made()
    inbox = Inbox()
    engine.submit([job(constraint=JsonConstraint(None, '{"const": "refused"}'))], inbox)
    error = inbox.wait().error()
    assert isinstance(error, RequestError)
    assert (error.status, error.field) == (400, "response_format")


def test_a_cancelled_answer_is_aborted_in_vllm_and_others_go_on(made: Made) -> None:
    engine, client = made()
    client.may_say = 2
    first, second = Inbox(), Inbox()
    ticket = engine.submit([job(tokens=50)], first)
    engine.submit([job(tokens=4)], second)
    assert first.begun.wait(30) and second.begun.wait(30)
    ticket.cancel()
    assert first.wait().told()[2] == "cancelled"
    assert client.aborted == ["1"]
    client.may_say = None
    assert second.wait().told() == ("abcd", [], "length", 4)
    ticket.cancel()  # without effect
    assert (engine.stats().cancelled, engine.stats().finished, engine.stats().generated_tokens) == (1, 1, 6)


def test_an_answer_that_is_cancelled_before_it_begins_is_told(made: Made) -> None:
    engine, client = made(start=False)
    inbox = Inbox()
    engine.submit([job()], inbox).cancel()
    engine.start()
    assert inbox.wait().told() == ("", [], "cancelled", 0)
    assert client.prompts == []


def test_a_stop_string_ends_the_computing(made: Made) -> None:
    engine, client = made()
    inbox = Inbox()
    engine.submit([job(tokens=1000, stop=("cd",))], inbox)
    assert inbox.wait().told() == ("ab", [], "stop", 4)
    assert client.aborted == ["1"] and not client.running


def test_a_sink_that_fails_cancels_its_own_answer(made: Made) -> None:
    engine, client = made()

    def broken(event: Event) -> None:
        raise RuntimeError("the event loop is closed")

    inbox = Inbox()
    engine.submit([job(tokens=10_000)], broken)
    engine.submit([job(tokens=3)], inbox)
    inbox.wait()
    engine.close(30)
    assert client.aborted == ["1"] and engine.stats().cancelled == 1


def test_the_queue_is_bounded_and_a_request_is_taken_as_a_whole(made: Made) -> None:
    engine, client = made(max_active=2, max_queue=1)
    client.may_say = 1
    inbox = Inbox(2)
    engine.submit([job(), job()], inbox)
    with pytest.raises(RequestError) as caught:
        engine.submit([job(), job()], Inbox())
    assert caught.value.status == 429 and engine.retry_after() >= 1
    engine.submit([job()], Inbox())
    stats = engine.stats()
    assert (stats.active, stats.waiting, stats.refused) == (2, 1, 1)
    client.may_say = None
    inbox.wait()
    with pytest.raises(RequestError, match="no tokens"):
        engine.submit([job("")], Inbox())


def test_an_answer_that_takes_too_long_fails_with_504(made: Made) -> None:
    engine, client = made(request_seconds=0.05)
    client.may_say = 1
    inbox = Inbox()
    engine.submit([job()], inbox)
    error = inbox.wait().error()
    assert isinstance(error, RequestError) and error.status == 504
    assert client.aborted == ["1"]


def test_one_failure_is_the_answers_own_and_a_dead_vllm_everybodys(made: Made) -> None:
    engine, client = made()
    failure = fake_vllm.EngineGenerateError("out of luck")
    client.failing, first = failure, Inbox()
    engine.submit([job()], first)
    assert first.wait().error() is failure
    client.failing, second = None, Inbox()
    engine.submit([job(tokens=2)], second)
    assert second.wait().told()[0] == "ab"
    client.may_say, third = 1, Inbox(2)
    engine.submit([job(), job()], third)
    client.errored, client.failing = True, fake_vllm.EngineDeadError()
    third.wait()
    assert [getattr(third.error(index), "status", None) for index in (0, 1)] == [503, 503]
    with pytest.raises(RequestError) as caught:
        engine.submit([job()], Inbox())
    assert caught.value.status == 503 and engine.stats().failed == 3


def test_closing_lets_answers_end_then_fails_the_rest_and_ends_vllm(made: Made) -> None:
    engine, client = made()
    done = Inbox()
    engine.submit([job(tokens=500)], done)
    engine.close(30)
    assert done.told()[3] == 500 and client.shut_down == 1
    with pytest.raises(RequestError) as caught:
        engine.submit([job()], Inbox())
    assert caught.value.status == 503
    engine.close()
    assert client.shut_down == 1

    other, held = made()
    held.may_say, late = 1, Inbox()
    ticket = other.submit([job()], late)
    assert late.begun.wait(30)
    other.close(0.0)
    assert getattr(late.wait().error(), "status", None) == 503 and held.shut_down == 1
    ticket.cancel()  # the request's own end comes after

    never, asleep = made(start=False)
    never.close()
    assert asleep.shut_down == 1
