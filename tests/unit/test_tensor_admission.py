"""What runs are thought to cost, and who is refused when more comes than can be done. Times are made up."""

from __future__ import annotations

import random

import pytest

from deepseek.serve.tensor.admission import Admission, Costs


def test_between_known_sizes_time_is_linear_and_beyond_in_proportion():
    costs = Costs({1: 1.0, 4: 2.5, 8: 4.0})
    assert [costs.seconds(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [1.0, 1.5, 2.0, 2.5, 3.25, 4.0, 8.0]
    assert Costs().seconds(5) == 0.0


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 1),  # nothing is gained
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),  # all is gained
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 4.0}, 4),
        ({}, 8),
    ],
)
def test_the_best_size_is_the_smallest_that_is_about_as_fast_a_row(seconds, best):
    assert Costs(seconds).best_rows(8) == best


def test_costs_follow_what_is_seen():
    costs = Costs({1: 1.0})
    for _ in range(100):
        costs.observe(1, 3.0)
    assert costs.seconds(1) == pytest.approx(3.0, rel=1e-3)


def offer(admission, start, seconds, rate):
    """Have requests come evenly; return the time of the last."""
    count = int(seconds * rate)
    for index in range(count):
        admission.offer(start + index / rate, 1)
    return start + seconds


def test_steady_work_below_what_can_be_done_is_never_overload():
    admission = Admission(Costs({1: 0.01}), 1, 1)
    offer(admission, 0.0, 10.0, 80)
    assert not admission.overloaded
    assert admission.fits(10.0, 1, 50, [10.005])


def test_ten_times_too_much_is_overload_within_half_a_second_and_ends_when_it_ends():
    admission = Admission(Costs({1: 0.01}), 1, 1)
    now = offer(admission, 0.0, 0.5, 1000)
    assert admission.overloaded
    offer(admission, now + 5.0, 2.0, 20)
    assert not admission.overloaded


def test_the_request_with_which_overload_begins_is_told_once():
    admission = Admission(Costs({1: 0.01}), 1, 1)
    assert [admission.offer(index / 1000, 1) for index in range(1000)].count(True) == 1


def test_a_little_too_much_is_overload_once_half_the_queue_is_taken():
    admission = Admission(Costs({1: 0.01}), 1, 1)
    now = offer(admission, 0.0, 20.0, 120)
    assert not admission.overloaded
    assert admission.offer(now, 1, 0.6)


def test_a_short_burst_is_not_overload():
    admission = Admission(Costs({1: 0.01}), 1, 1)
    for _ in range(200):
        admission.offer(5.0, 1)
    assert not admission.overloaded


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0])
def test_64_who_ask_again_when_they_are_answered_are_never_overload(seconds):
    admission = Admission(Costs({1: seconds}), 1, 1)
    for _ in range(64):
        admission.offer(0.0, 1)
    for turn in range(1, 500):
        admission.offer(turn * seconds, 1)
        assert not admission.overloaded


def test_under_overload_only_who_is_answered_soon_is_let_in():
    admission = Admission(Costs({1: 0.01}), 1, 1)
    now = offer(admission, 0.0, 2.0, 1000)
    assert admission.fits(now, 1, 0, [])  # idle
    assert admission.fits(now, 1, 0, [now + 0.004])
    assert not admission.fits(now, 1, 0, [now + 0.006])
    assert not admission.fits(now, 1, 1, [now + 0.001])


def test_under_overload_a_run_grows_as_far_as_it_stays_quick():
    admission = Admission(Costs({1: 0.010, 2: 0.011, 4: 0.013, 8: 0.018}), 1, 8)
    now = offer(admission, 0.0, 2.0, 5000)
    assert admission.overloaded
    assert [admission.fits(now, 1, waiting, [now]) for waiting in (0, 3, 7, 8)] == [True, True, False, False]


@pytest.mark.parametrize("rate", [900, 2500])
def test_two_instances_do_twice_as_much(rate):
    admission = Admission(Costs({1: 0.002}), 2, 1)
    offer(admission, 0.0, 9.0, rate)
    assert admission.overloaded == (rate > 1100)


def simulate(costs, batch_rows, rate, seconds=10.0, seed=0):
    """Let requests come at random to one instance that takes what waits; return latencies of those let in, refusals.

    The first two seconds don't count. When overload begins, who waits is refused, as the engine does it.
    """
    rng = random.Random(seed)
    admission = Admission(costs, 1, batch_rows)
    now, free, waiting, running, latencies, refused = 0.0, 0.0, [], [], [], 0

    def advance(until):
        nonlocal free, waiting, running
        while running and free <= until:
            latencies.extend((came, free - came) for came in running)
            running, waiting = waiting[:batch_rows], waiting[batch_rows:]
            free += costs.seconds(len(running)) if running else 0.0

    while now < seconds:
        now += rng.expovariate(rate)
        advance(now)
        if admission.offer(now, 1, len(waiting) / 256):
            refused += len(waiting)
            waiting = []
        if not admission.fits(now, 1, len(waiting), [free] if running else []) or len(waiting) >= 256:
            refused += 1
        elif running:
            waiting.append(now)
        else:
            running, free = [now], now + costs.seconds(1)
    return sorted(late for came, late in latencies if came > 2.0), refused


@pytest.mark.parametrize(
    ("seconds", "batch_rows"), [({1: 0.01}, 1), ({1: 0.010, 2: 0.011, 4: 0.013, 8: 0.018}, 8), ({1: 0.002}, 1)]
)
@pytest.mark.parametrize("times", [3, 10, 50])
def test_at_many_times_the_load_those_let_in_are_answered_within_twice_the_time_alone(seconds, batch_rows, times):
    costs = Costs(seconds)
    capacity = batch_rows / costs.seconds(batch_rows)
    latencies, refused = simulate(costs, batch_rows, times * capacity)
    assert latencies[int(0.99 * len(latencies))] <= 2 * seconds[1]
    assert len(latencies) > 0.45 * 8 / seconds[1]
    assert refused > 0


def test_below_what_can_be_done_nobody_is_refused():
    latencies, refused = simulate(Costs({1: 0.01}), 1, 85.0)
    assert refused == 0
    assert len(latencies) > 600
