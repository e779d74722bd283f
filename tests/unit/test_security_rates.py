"""Rates that several processes share: as one process alone would hold them, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.serve.security.limits import RateLimiter
from deepseek.serve.security.rates import OwnRates, SharedRates
from deepseek.serve.shared_file import SharedFile

INTERVAL, ROOM = 1.0, 3.0
PROCESS = """
import os, signal, sys
from deepseek.serve.security.rates import SharedRates
from deepseek.serve.shared_file import SharedFile

descriptor, place, count, end = map(int, sys.argv[1:])
rates = SharedRates(SharedFile(descriptor), place)
print(sum(rates.spend("ann", 100.0, 1.0, 500.0) == 0 for _ in range(count)))
print(sum(rates.open("bob", 1000) for _ in range(7)), flush=True)
if end:
    rates._lock()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def of_two():
    """Return the rates of two workers on one table."""
    table = SharedRates.make(2)
    return [SharedRates(copy_of(table), place) for place in range(2)]


def copy_of(rates):
    """Return the same file opened anew, as another process would have it."""
    return SharedFile(os.dup(rates.file.descriptor))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abc"), st.sampled_from((0.0, 0.3, 2.0))), max_size=40))
def test_two_workers_let_pass_what_one_would(steps):
    alone, shared, now = OwnRates(), of_two(), 50.0
    for place, client, pause in steps:
        now += pause
        expected = alone.spend(client, now, INTERVAL, ROOM)
        assert shared[place].spend(client, now, INTERVAL, ROOM) == pytest.approx(expected)


def test_open_requests_are_counted_over_both_and_those_of_a_dead_worker_are_closed():
    first, second = of_two()
    assert [first.open("a", 3), first.open("a", 3), second.open("a", 3), second.open("a", 3)] == [True] * 3 + [False]
    second.close("a")
    second.close("a")  # closing more than was opened takes nothing from the other
    assert [second.open("a", 3), first.open("a", 3)] == [True, False]
    again = SharedRates(copy_of(first), 0)
    assert [again.open("a", 3), again.open("a", 3), second.open("a", 3)] == [True, True, False]


def test_memory_is_bounded_and_the_last_ones_are_remembered():
    (rates, _), now = of_two(), 0.0
    assert rates.open("held", 1)
    size = os.fstat(rates.file.descriptor).st_size
    for number in range(40_000):
        now += 0.001
        assert rates.spend(f"address {number}", now, 60.0, 60.0) == 0
    assert os.fstat(rates.file.descriptor).st_size == size < 1 << 20
    assert all(rates.spend(f"address {number}", now, 60.0, 60.0) > 0 for number in range(39_000, 40_000))
    assert not rates.open("held", 1)  # no flood of others frees what is open


def test_processes_at_once_lose_no_request_and_one_killed_with_the_lock_holds_nobody_up():
    table = SharedRates.make(4)
    descriptor = table.file.descriptor
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(descriptor), str(place), "400", str(int(place == 3))],
            pass_fds=(descriptor,),
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in range(4)
    ]
    told = [process.communicate(timeout=60)[0].split() for process in started]
    assert sum(int(passed) for passed, _ in told) == 500  # what the bucket holds, from all four together
    assert [process.returncode for process in started] == [0, 0, 0, -signal.SIGKILL]
    assert [int(count) for _, count in told] == [7] * 4
    limiter = RateLimiter(60, concurrent=29, rates=table)
    assert limiter.acquire("bob") is None and limiter.acquire("bob").status == 429
    assert limiter.refused == {"rate": 0, "concurrent": 1}
