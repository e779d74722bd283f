"""The cache of answers without Redis: memory within bounds, what is kept, when it switches itself off."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.errors import ConfigError
from deepseek.serve.state.breaker import CircuitBreaker
from deepseek.serve.state.cache import LruCache
from deepseek.serve.state.frequency import FrequencySketch
from deepseek.serve.state.options import StateOptions, build_state
from deepseek.serve.state.response_cache import AnswerCache
from deepseek.serve.state.worth import Worth
from tests.fake_serving import FakeModel
from tests.fake_tensor import LoneInput
from tests.rest_client import client_of

COST = 256


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcdefgh"), st.integers(0, 600)),
        st.tuples(st.just("get"), st.sampled_from("abcdefgh"), st.just(0)),
        st.tuples(st.just("remove"), st.sampled_from("abcdefgh"), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 6)),
    ),
    max_size=60,
)


@given(actions=ACTIONS)
@settings(max_examples=150, deadline=None)
def test_the_least_recently_used_goes_first_and_no_byte_too_many_is_kept(actions):
    clock, room = Clock(), 8 * 800
    cache = LruCache(room, 10.0, clock)
    plain = []  # (key, body, until), the least recently used first
    for what, key, number in actions:
        if what == "wait":
            clock.now += number
        elif what == "remove":
            cache.remove(key)
            plain = [entry for entry in plain if entry[0] != key]
        elif what == "put":
            body = b"x" * number
            assert cache.put(key, body) is (number + 1 + COST <= room // 8)
            plain = [entry for entry in plain if entry[0] != key]
            if number + 1 + COST <= room // 8:
                plain.append((key, body, clock.now + 10.0))
                while sum(len(one[1]) + 1 + COST for one in plain) > room:
                    plain.pop(0)
        else:
            found = next((entry for entry in plain if entry[0] == key), None)
            if found is not None:
                plain.remove(found)
                if found[2] > clock.now:
                    plain.append(found)
            expected = found[1] if found is not None and found[2] > clock.now else None
            assert cache.get(key) == expected
        assert cache.nbytes == sum(len(one[1]) + 1 + COST for one in plain) <= room
        assert len(cache) == len(plain)


def test_a_cache_without_room_or_time_is_refused():
    for room, seconds in ((0, 1.0), (10, 0.0), (10, float("nan"))):
        with pytest.raises(ConfigError, match="needs room and time"):
            LruCache(room, seconds)


def test_counts_are_never_too_low_and_seldom_too_high():
    sketch, true = FrequencySketch(sample=10**6), Counter()
    draw = random.Random(1)
    keys = [f"key {int(draw.paretovariate(0.5))}" for _ in range(8000)]
    for key in keys:
        true[key] += 1
        assert sketch.add(key) >= min(true[key], 15)
    estimates = {key: sketch.count(key) for key in true}
    assert all(estimates[key] >= min(true[key], 15) for key in true)
    assert sum(estimates[key] > min(true[key], 15) for key in true) <= len(true) * 0.02
    assert sum(sketch.count(f"other {number}") > 0 for number in range(2000)) <= 40


def test_what_was_popular_once_is_forgotten():
    sketch = FrequencySketch(bits=10, sample=100)
    for _ in range(50):
        sketch.add("old")
    before = sketch.count("old")
    for number in range(400):
        sketch.add(f"new {number % 7}")
    assert before == 15 and sketch.count("old") <= 1


def ask(cache, keys):
    async def all_of_them():
        found = []
        for key in keys:
            body = await cache.get(key)
            found.append(body)
            if body is None:
                await cache.put(key, key.encode())
        return found

    return asyncio.run(all_of_them())


def test_an_answer_is_kept_from_its_second_time_on():
    cache = AnswerCache(LruCache(1 << 20, 60.0))
    assert ask(cache, ["a", "a", "a", "b", "a", "b", "b"]) == [None, None, b"a", None, b"a", None, b"b"]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.refused, stats.entries) == (3, 4, 2, 2, 2)


def test_a_flood_of_different_requests_drives_nothing_out():
    cache = AnswerCache(LruCache(40 * 300, 60.0), worth=Worth(window=10**9))
    popular = [f"popular {number}" for number in range(20)]
    ask(cache, popular * 2)
    ask(cache, [f"flood {number}" for number in range(3000)])
    assert ask(cache, popular) == [key.encode() for key in popular]


def test_it_switches_off_while_nothing_is_found_and_comes_back():
    cache = AnswerCache(LruCache(1 << 20, 60.0), worth=Worth(window=100, pause=200))
    ask(cache, [f"only once {number}" for number in range(100)])
    assert not cache.stats().is_on
    ask(cache, [f"more {number}" for number in range(199)])
    assert not cache.stats().is_on and cache.stats().skipped == 199
    ask(cache, ["last", *["same"] * 100])  # the trial finds that requests come again now
    assert cache.stats().is_on and cache.stats().hits >= 90


def test_trials_become_rare_while_they_fail():
    worth, trials = Worth(window=10, pause=10), []
    for lookup in range(20_000):
        if worth.is_on:
            if not trials or lookup - trials[-1] >= 10:
                trials.append(lookup)
            worth.count(hit=False, again=False, evictions=0)
        else:
            worth.skip()
    gaps = [after - before for before, after in zip(trials, trials[1:], strict=False)]
    assert gaps[0] == 20 and gaps[1] == 30 and max(gaps) == 10 + 10 * 64
    assert gaps == sorted(gaps)


def test_a_cache_that_still_fills_stays_on_and_one_that_only_thrashes_does_not():
    filling, thrashing = Worth(window=100), Worth(window=100)
    for lookup in range(100):
        filling.count(hit=False, again=lookup % 10 == 0, evictions=0)
        thrashing.count(hit=False, again=lookup % 10 == 0, evictions=lookup)
    assert filling.is_on and not thrashing.is_on


def test_a_breaker_opens_on_lasting_failures_only_and_asks_less_and_less():
    clock = Clock()
    breaker = CircuitBreaker(1.0, 8.0, clock)
    assert breaker.is_open and breaker.claim_trial() and not breaker.claim_trial()
    breaker.tried(well=True)
    for call in range(200):  # one in ten fails
        breaker.failed() if call % 10 == 0 else breaker.succeeded()
    assert not breaker.is_open
    for call in range(20):  # every other one does
        breaker.failed() if call % 2 == 0 else breaker.succeeded()
    assert breaker.is_open and breaker.opened == 1
    trials = []
    for _ in range(400):
        clock.now += 0.125
        if breaker.claim_trial():
            trials.append(clock.now)
    assert [b - a for a, b in zip(trials, trials[1:], strict=False)][:5] == [1.0, 2.0, 4.0, 8.0, 8.0]
    breaker.tried(well=True)
    breaker.failed()
    assert not breaker.is_open


def test_answers_of_the_server_come_from_the_cache_the_third_time():
    state = build_state(StateOptions(cache_bytes=64 << 20))
    model = LoneInput()
    models = {"lone": model, "say": FakeModel("abcdefgh")}
    with client_of(models, cache=state.cache, sessions=state.sessions) as client:
        x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        answers = [client.post("/v2/models/lone/infer", json={"inputs": [x]}).json() for _ in range(4)]
        assert answers == [answers[0]] * 4 and model.runs == 2
        body = {"model": "say", "prompt": "x", "max_tokens": 4, "temperature": 0}
        texts = [client.post("/v1/completions", json=body).json()["choices"] for _ in range(4)]
        assert texts == [texts[0]] * 4
        # what is drawn anew each time is never kept
        client.post("/v1/completions", json={**body, "temperature": 1.0})
    stats = state.cache.stats()
    assert (stats.hits, stats.misses, stats.entries) == (4, 4, 2)


def test_what_is_switched_off_is_not_there():
    state = build_state(StateOptions(cache_bytes=0, session_bytes=0))
    assert (state.cache, state.sessions, state.links) == (None, None, ())
    assert build_state(StateOptions()).cache is None
    shared = StateOptions(redis_url="redis://127.0.0.1:1/0")
    assert build_state(shared).cache is not None  # who names a Redis wants answers kept there
    assert build_state(shared.replace(cache_bytes=0)).cache is None
    with pytest.raises(ConfigError, match="address of Redis"):
        build_state(StateOptions(redis_url="http://secret@host", cache_bytes=1))
    assert "secret" not in repr(StateOptions(redis_url="redis://:secret@host"))
