"""The engine under random arrivals, cancellations and failures, with few pages; order, preemption and step sizes.

The fake model's pages hold a hash of all tokens up to each position, and its runner refuses a step whose pages don't
hold the history: so every answer here also proves that no page was mixed up.
"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepseek.errors import RequestError
from deepseek.models.generation import SamplingConfig
from deepseek.serve.text.engine import Done, Engine, EngineLimits, Event, Failed, Job, Piece, Ticket
from deepseek.serve.text.plan import StepPlan
from deepseek.serve.text.scheduler import MOST_DEFERRED
from tests.fake_serving import FakeModel, FakeRunner


class Recorder(FakeRunner):
    """Keeps a summary of every step: sequence, start, number of tokens, whether a token was wanted."""

    def run(self, plan: StepPlan):
        self._model.plans.append(
            [(run.sequence, run.start, len(run.tokens), run.sampling is not None) for run in plan.runs]
        )
        return super().run(plan)


class RecordedModel(FakeModel):
    """A fake with few pages that says what its prompt says."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks=num_blocks)
        self.plans: list[list[tuple[int, int, int, bool]]] = []

    def runner(self, limits: EngineLimits) -> Recorder:
        return Recorder(self, limits, self._num_blocks or 1)


class Asked:
    """One answer that was asked for, and what came of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.text = ""
        self.end: Done | Failed | None = None
        self.after_end = 0
        self.cancelled = False
        self.broken = False

    def __call__(self, event: Event) -> None:
        self.after_end += self.end is not None
        if self.broken:
            raise RuntimeError("nobody listens")
        if isinstance(event, Piece):
            self.text += event.text
        else:
            self.end = event


def said(job: Job) -> str:
    """Return what the model says to a job when it is alone."""
    text = bytes(reversed(job.prompt_ids)).decode() + str(len(job.prompt_ids))
    text = (text * job.sampling.max_new_tokens)[: job.sampling.max_new_tokens]
    for stop in job.stop:
        text = text.partition(stop)[0]
    return text


def job(prompt: str, tokens: int, **rest) -> Job:
    return Job(list(prompt.encode()), SamplingConfig(max_new_tokens=tokens, temperature=0), **rest)


def drain(engine: Engine, most: int = 5000) -> None:
    for _ in range(most):
        if not engine.step():
            return
    raise AssertionError("the engine does not come to an end")


def check_pages(engine: Engine, asked: list[Asked]) -> None:
    """Count the holders of every page anew; one page of two texts means equal beginnings of the same tenant."""
    scheduler, size = engine._scheduler, engine._runner.block_size
    holders: Counter[int] = Counter()
    texts: dict[int, tuple] = {}
    for sequence in scheduler._running:
        assert len(sequence.blocks) * size >= sequence.computed
        assert len(set(sequence.blocks)) == len(sequence.blocks)
        holders.update(sequence.blocks)
        for page, block in enumerate(sequence.blocks):
            text = (asked[sequence.number - 1].job.salt, sequence.history[: (page + 1) * size])
            assert texts.setdefault(block, text) == text
    for sequence in [*scheduler._waiting.values(), *scheduler._preempted]:
        assert (sequence.blocks, sequence.computed) == ([], 0)
    assert all(scheduler.pool.holders(block) == holders[block] for block in range(scheduler.pool.total))
    assert scheduler.pool.used == len(holders)
    assert len(scheduler.prefix) <= scheduler.pool.total


_PROMPT = st.builds(
    lambda length, tail: "abbaababbaabbaabab"[:length] + tail, st.integers(1, 18), st.text("ab", max_size=6)
)


class EngineUnderFire(RuleBasedStateMachine):
    """Random requests against an engine with few pages."""

    @initialize(
        blocks=st.integers(6, 24),
        size=st.integers(1, 4),
        active=st.integers(1, 5),
        tokens=st.integers(1, 24),
        prefix=st.booleans(),
    )
    def begin(self, blocks: int, size: int, active: int, tokens: int, prefix: bool) -> None:
        self.now = 0.0
        self.capacity = blocks * size
        self.model = RecordedModel(blocks)
        limits = EngineLimits(
            max_active=active, max_batch_tokens=tokens, block_size=size, prefix_cache=prefix, max_queue=12
        )
        self.engine = Engine(self.model, limits, clock=lambda: self.now)
        self.asked: list[Asked] = []
        self.tickets: list[tuple[Ticket, list[Asked]]] = []
        self.may_fail: list[Asked] = []

    @rule(
        prompt=_PROMPT,
        tokens=st.integers(1, 24),
        answers=st.integers(1, 3),
        stop=st.sampled_from([(), ("ab",), ("bb",)]),
        stream=st.booleans(),
        salt=st.sampled_from([None, None, "tenant"]),
    )
    def ask(self, prompt: str, tokens: int, answers: int, stop: tuple, stream: bool, salt: str | None) -> None:
        asked = [Asked(job(prompt, tokens, stop=stop, stream=stream, salt=salt)) for _ in range(answers)]
        before = self.engine.stats().waiting
        try:
            ticket = self.engine.submit([one.job for one in asked], lambda event: asked[event.choice](event))
        except RequestError as refusal:
            fits = len(prompt) + tokens - 1 <= self.capacity
            assert refusal.status == (429 if fits else 400)
            assert not fits or before + answers > 12
            return
        self.asked += asked
        self.tickets.append((ticket, asked))

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.now += 1.0
            self.engine.step()

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket, asked = self.tickets[data.draw(st.integers(0, len(self.tickets) - 1))]
        ticket.cancel()
        self.engine.step()
        for one in asked:  # pages are back within one step: invariants count them
            assert one.end is not None or one.broken
            one.cancelled = True

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        self.asked[data.draw(st.integers(0, len(self.asked) - 1))].broken = True

    @rule()
    def fail_a_step(self) -> None:
        failure, before = RuntimeError("the step failed"), len(self.model.plans)
        self.model.fail_step = failure
        self.engine.step()
        self.model.fail_step = None
        numbers = sorted(sequence for plan in self.model.plans[before:] for sequence, *_ in plan)
        planned = [self.asked[number - 1] for number in numbers]
        failed = [one for one in self.asked if isinstance(one.end, Failed) and one.end.error is failure]
        assert [one for one in planned if not one.broken] == [one for one in failed if not one.broken]

    @rule(at=st.integers(0, 3))
    def fail_answers(self, at: int) -> None:
        self.model.fail_at = at
        self.engine.step()
        self.model.fail_at = None

    @invariant()
    def pages_are_in_order(self) -> None:
        if hasattr(self, "engine"):
            check_pages(self.engine, self.asked)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        drain(self.engine)
        for one in self.asked:
            assert one.after_end == 0
            if one.broken:
                continue
            assert one.end is not None
            if isinstance(one.end, Failed):
                assert one.end.error is self.model.failure or str(one.end.error) == "the step failed"
            elif one.end.reason != "cancelled":
                assert one.text == said(one.job)
            else:
                assert one.cancelled
        check_pages(self.engine, self.asked)
        stats = self.engine.stats()
        assert (stats.waiting, stats.active, stats.blocks_used, self.model.open) == (0, 0, 0, 0)
        assert stats.finished + stats.cancelled + stats.failed == len(self.asked)
        assert max((sum(run[2] for run in plan) for plan in self.model.plans), default=0) <= (
            self.engine.limits.max_batch_tokens
        )


TestEngineUnderFire = EngineUnderFire.TestCase
TestEngineUnderFire.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

_PROMPTS = st.lists(st.tuples(_PROMPT, st.integers(1, 16)), min_size=2, max_size=14)


def serve(prompts, *, blocks: int, **limits) -> tuple[RecordedModel, list[Asked], Engine]:
    model = RecordedModel(blocks)
    engine = Engine(model, EngineLimits(block_size=4, **limits))
    asked = [Asked(job(prompt, tokens)) for prompt, tokens in prompts]
    for one in asked:
        engine.submit([one.job], one)
    drain(engine)
    return model, asked, engine


def first_tokens(model: RecordedModel) -> list[int]:
    """Return the step of each sequence's first token, by arrival."""
    steps: dict[int, int] = {}
    for step, plan in enumerate(model.plans):
        for sequence, _, _, wanted in plan:
            if wanted:
                steps.setdefault(sequence, step)
    return [steps[sequence] for sequence in sorted(steps)]


@given(_PROMPTS, st.integers(10, 30), st.integers(1, 6), st.integers(1, 20))
@settings(deadline=None)
def test_batched_answers_are_the_lone_ones_and_first_come_is_first_served(prompts, blocks, active, tokens):
    model, asked, engine = serve(prompts, blocks=blocks, max_active=active, max_batch_tokens=tokens, prefix_cache=False)
    assert [one.text for one in asked] == [said(one.job) for one in asked]
    steps = first_tokens(model)
    assert steps == sorted(steps)
    assert engine.stats().blocks_used == 0


@given(_PROMPTS, st.integers(10, 30), st.integers(1, 6), st.integers(1, 20))
@settings(deadline=None)
def test_reuse_changes_no_answer_and_lets_only_few_pass(prompts, blocks, active, tokens):
    model, asked, _ = serve(prompts, blocks=blocks, max_active=active, max_batch_tokens=tokens)
    assert [one.text for one in asked] == [said(one.job) for one in asked]
    steps = first_tokens(model)
    for index, (prompt, _) in enumerate(prompts):
        passed = sum(later < steps[index] for later in steps[index + 1 :])
        assert passed <= (len(prompt) // 4) * min(MOST_DEFERRED, active)


@given(_PROMPTS, st.integers(10, 12))
@settings(deadline=None)
def test_the_oldest_that_has_begun_is_never_held_up(prompts, blocks):
    """It gets a token or a piece of its prompt in every step, until it is done: so everything ends."""
    model, _, _ = serve(prompts, blocks=blocks, max_active=6, max_batch_tokens=8)
    last = {sequence: step for step, plan in enumerate(model.plans) for sequence, *_ in plan}
    for step, (plan, following) in enumerate(itertools.pairwise(model.plans)):
        oldest = min(sequence for sequence, *_ in plan)
        assert last[oldest] == step or oldest in [sequence for sequence, *_ in following]


def test_a_preempted_answer_resumes_exactly_and_the_oldest_is_not_the_victim():
    prompts = [("abcdefgh", 16), ("ijklmnop", 16), ("qrstuvwx", 16)]
    model, asked, engine = serve(prompts, blocks=12, max_active=3, max_batch_tokens=32, prefix_cache=False)
    assert [one.text for one in asked] == [said(one.job) for one in asked]
    assert engine.stats().preemptions > 0
    again = [run for plan in model.plans[1:] for run in plan if run[1] == 0]
    assert {sequence for sequence, *_ in again} <= {2, 3}
    assert all(count > 8 for _, _, count, _ in again)  # prompt and answer so far, in one go


def test_a_long_prompt_comes_in_pieces_while_answers_go_on():
    model = RecordedModel(64)
    engine = Engine(model, EngineLimits(block_size=4, max_batch_tokens=8))
    for prompt, tokens in (("ab", 6), ("cd", 6), ("x" * 20, 2)):
        engine.submit([job(prompt, tokens)], Asked(job(prompt, tokens)))
    drain(engine)
    assert model.plans[:4] == [
        [(1, 0, 2, True), (2, 0, 2, True), (3, 0, 4, False)],
        [(1, 2, 1, True), (2, 2, 1, True), (3, 4, 6, False)],
        [(1, 3, 1, True), (2, 3, 1, True), (3, 10, 6, False)],
        [(1, 4, 1, True), (2, 4, 1, True), (3, 16, 4, True)],
    ]


def test_texts_that_begin_alike_and_come_together_are_computed_once():
    prompts = [("the same beginning " + name, 2) for name in ("one", "two", "three", "four")]
    model, _, engine = serve(prompts, blocks=64, max_active=4, max_batch_tokens=64)
    prompts = [[run[:3] for run in plan if run[2] > 1] for plan in model.plans[:3]]
    assert prompts == [[(1, 0, 22)], [(2, 16, 6), (4, 16, 7)], [(3, 20, 4)]]  # two and three have their t in common
    assert engine.stats().cached_tokens == 16 + 16 + 20


def test_who_passes_a_waiting_text_leaves_it_its_pages():
    """The second waits for the beginning that the first computes; the third must not take what it needs then."""
    prompts = [("abcdefgh", 4), ("abcdefgh" + "i" * 12, 4), ("z" * 16, 12)]
    model, _, _ = serve(prompts, blocks=9, max_active=3, max_batch_tokens=64)
    assert first_tokens(model)[:2] == [0, 1]
    assert first_tokens(model)[2] > 1


def test_kept_pages_give_way_to_the_longest_unused_first():
    model = RecordedModel(6)
    engine = Engine(model, EngineLimits(block_size=4))
    cached = []
    for prompt in ("aaaaaaaa.", "bbbbbbbb.", "aaaaaaaa.", "cccccccc.", "aaaaaaaa.", "bbbbbbbb."):
        asked = Asked(job(prompt, 1))
        engine.submit([asked.job], asked)
        drain(engine)
        cached.append(asked.end.cached_tokens)
    assert cached == [0, 0, 8, 0, 8, 4]  # the end of the longest unused text went first


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_runner_whose_pages_stand_for_nothing_is_never_told_to_go_on_elsewhere(prefix_cache):
    class Own(RecordedModel):
        def runner(self, limits):
            runner = super().runner(limits)
            runner.shares_pages = False
            return runner

    model = Own(64)
    engine = Engine(model, EngineLimits(block_size=4, prefix_cache=prefix_cache))
    asked = [Asked(job("abcdefghij", 3)) for _ in range(3)]
    engine.submit([one.job for one in asked], lambda event: asked[event.choice](event))
    drain(engine)
    assert [run[1:3] for run in model.plans[0]] == [(0, 10)] * 3
    assert engine.stats().cached_tokens == 0
