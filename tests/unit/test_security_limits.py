"""Rates against a plain simulation of a token bucket, and bounded memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.serve.security.limits import RateLimiter, client_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 600), st.integers(1, 20), st.lists(st.integers(0, 50_000), max_size=60))
def test_requests_pass_exactly_as_through_a_bucket_of_tokens(rate, burst, pauses):
    clock = Clock()
    limiter = RateLimiter(rate, burst=burst, clock=clock)
    tokens = float(burst)
    for milliseconds in pauses:
        clock.now += milliseconds / 1000
        tokens = min(burst, tokens + milliseconds / 1000 * rate / 60)
        refusal = limiter.check("a")
        if abs(tokens - 1) > 1e-6:  # the two round differently at the very edge
            assert (refusal is None) == (tokens > 1)
        if refusal is None:
            tokens -= 1


def test_a_refusal_says_when_to_come_again_and_then_it_passes():
    clock = Clock()
    limiter = RateLimiter(60, burst=3, clock=clock)
    assert [limiter.check("a") for _ in range(3)] == [None] * 3
    refusal = limiter.check("a")
    assert (refusal.status, refusal.retry_after) == (429, 1)
    assert limiter.check("b") is None
    clock.now += refusal.retry_after
    assert limiter.check("a") is None


def test_a_refused_request_costs_nothing():
    clock = Clock()
    limiter = RateLimiter(60, burst=1, clock=clock)
    limiter.check("a")
    for _ in range(1000):
        assert limiter.check("a") is not None
    clock.now += 1
    assert limiter.check("a") is None


def test_a_key_with_its_own_rate_keeps_to_that():
    limiter = RateLimiter(None, clock=Clock())
    assert [limiter.check("free") for _ in range(100)] == [None] * 100
    assert [limiter.check("held", 6) is None for _ in range(3)] == [True, False, False]


def test_open_requests_are_counted_and_given_back():
    limiter = RateLimiter(concurrent=2)
    assert limiter.acquire("a") is None and limiter.acquire("a") is None
    assert limiter.acquire("a").status == 429
    assert limiter.acquire("b") is None
    limiter.release("a")
    assert limiter.acquire("a") is None
    for client in "aab":
        limiter.release(client)
    assert not limiter._rates._open


def test_memory_is_bounded_and_those_over_their_rate_are_remembered_longest():
    clock = Clock()
    limiter = RateLimiter(60, burst=1, max_clients=100, clock=clock)
    for number in range(10_000):
        clock.now += 0.001
        limiter.check(f"address {number}")
        assert len(limiter._rates._full_at) <= 100
    assert limiter.check("address 9999") is not None


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "local"),
        ("", "local"),
        ("not:an:address" + "x" * 200, ("not:an:address" + "x" * 200)[:64]),
    ],
)
def test_an_ipv6_subscriber_is_one_client(address, client):
    assert client_of(address) == client


def test_the_wait_that_is_told_is_enough():
    for rate in (1, 7, 59, 1000):
        clock = Clock()
        limiter = RateLimiter(rate, burst=1, clock=clock)
        limiter.check("a")
        wait = limiter.check("a").retry_after
        assert wait == max(1, math.ceil(60 / rate))
        clock.now += wait
        assert limiter.check("a") is None
