"""Counts of several workers as one: sums that never fall, whoever dies and whenever."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from deepseek.serve import Service
from deepseek.serve.monitoring.board import Board
from deepseek.serve.monitoring.collect import Sources
from deepseek.serve.monitoring.definitions import SECONDS
from deepseek.serve.monitoring.metrics import PlainMetrics, PrometheusMetrics
from deepseek.serve.monitoring.process import process_samples
from deepseek.serve.monitoring.together import Together, fold
from deepseek.serve.page.numbers import numbers
from deepseek.serve.text.events import Done
from tests.fake_serving import FakeModel

WRITER = """
import sys
from deepseek.serve.monitoring.board import Board
from deepseek.serve.shared_file import SharedFile

board, number = Board(SharedFile(int(sys.argv[1]))), 0
print(flush=True)
while True:
    number += 1
    board.write(0, b"%d " % number * (number % 5000))
"""


def worker(board, number):
    service = Service({"say": FakeModel()})
    sources = Sources(facts=lambda: {"worker": number, "workers": 2, "restarts": 1 + number})
    return service, PrometheusMetrics(service, sources, Together(board, number))


def scraped(metrics):
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def test_any_worker_tells_the_sums_of_all():
    board = Board.make(2)
    (_, first), (service, second) = worker(board, 0), worker(board, 1)
    for metrics, count in ((first, 3), (second, 4)):
        for _ in range(count):
            metrics.request("/v1/completions", 200, 0.02)
        metrics.answer("say", Done(0, "stop", 5, 0.5, 2.5))
        metrics.publish()
    told = scraped(first)
    key = ("deepseek_requests_total", ("route", "/v1/completions"), ("status", "200"))
    assert told[key] == 7 == scraped(second)[key]
    bucket = ("deepseek_request_seconds_bucket", ("le", "0.025"), ("route", "/v1/completions"))
    assert told[bucket] == 7 and told["deepseek_request_seconds_sum", ("route", "/v1/completions")] == pytest.approx(
        0.14
    )
    assert told["deepseek_time_to_first_token_seconds_sum", ("model", "say")] == 1.0
    assert told[("deepseek_workers",)] == told[("deepseek_worker_restarts_total",)] == 2  # the most, not the sum
    assert {("process_threads", ("worker", number)) for number in "01"} <= set(told)
    drawn = numbers(service, second)
    assert drawn["requests"]["statuses"] == {"2xx": 7} and drawn["process"] == os.getppid()
    assert drawn["memory_bytes"] > 1.5 * dict(process_samples())["process_resident_memory_bytes"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("ask", "publish", "tell", "die")), st.integers(0, 1)), max_size=30))
def test_no_total_falls_and_what_was_told_once_is_kept(steps):
    board = Board.make(2)
    workers = [worker(board, number)[1] for number in range(2)]
    asked, last = 0, 0.0
    for step, number in steps:
        if step == "ask":
            workers[number].request("/infer", 200, 0.1)
            asked += 1
        elif step == "publish":
            workers[number].publish()
        elif step == "die":
            fold(board, number)
            workers[number] = worker(board, number)[1]
        else:
            found = workers[number].totals().get(("deepseek_requests_total", ("/infer", "200")), 0.0)
            assert last <= found <= asked
            last = found


def test_what_is_so_now_ends_with_the_worker():
    board = Board.make(2)
    (_, first), (_, second) = worker(board, 0), worker(board, 1)
    second.publish()
    assert ("process_threads", ("1",)) in first.totals()
    fold(board, 1)
    told = first.totals()
    assert ("process_threads", ("1",)) not in told and ("process_threads", ("0",)) in told


def test_without_prometheus_client_the_parts_still_count():
    service = Service({"say": FakeModel()})
    totals = PlainMetrics(service, Sources(), Together(Board.make(1), 0)).totals()
    assert totals["deepseek_ready", ()] == 0.0 and ("process_threads", ("0",)) in totals
    plain = PlainMetrics(service)
    assert numbers(service, plain)["requests"] == {"statuses": {}, "seconds": [], "limited": 0}
    plain.request("/v1/completions", 503, 0.01)
    assert numbers(service, plain)["requests"]["statuses"] == {"5xx": 1}


def test_histograms_are_those_of_prometheus_client():
    registry = CollectorRegistry()
    theirs = Histogram("deepseek_request_seconds", "x", ("route",), buckets=SECONDS, registry=registry)
    ours = PlainMetrics(Service({"say": FakeModel()}))
    for seconds in (0.0, 0.001, 0.00100001, 0.07, 1.0, 119.9, 120.0, 500.0, *SECONDS):
        theirs.labels("/r").observe(seconds)
        ours.request("/r", 200, seconds)
    told = ours.totals()
    (family,) = registry.collect()
    expected = {
        (one.name, tuple(one.labels[name] for name in ("route", "le") if name in one.labels)): one.value
        for one in family.samples
        if not one.name.endswith("_created")
    }
    assert len(expected) == len(SECONDS) + 3
    assert {series: told[series] for series in expected} == pytest.approx(expected)


def test_a_reader_never_meets_half_a_text():
    board = Board.make(1)
    descriptor = board.file.descriptor
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(descriptor)], pass_fds=(descriptor,), stdout=subprocess.PIPE
    )
    try:
        writer.stdout.readline()
        last = 0
        for _ in range(300):
            text = board.read(0)
            words = text.split()
            assert len(set(words)) <= 1 and (not words or len(words) == int(words[0]) % 5000)
            assert not words or int(words[0]) >= last
            last = int(words[0]) if words else last
    finally:
        writer.kill()
        writer.communicate()
    assert not board.write(0, bytes(2 << 20))


def test_a_writer_that_dies_in_the_middle_leaves_what_it_wrote_before():
    board = Board.make(2)
    assert board.read(0) == b""
    board.write(0, b"one")
    board.write(0, b"two")
    torn = board._start(0, 3)  # where the third would stand, cut after its head
    board._memory[torn : torn + 16] = b"\x03" + bytes(7) + b"\x05\0\0\0" + b"abcd"
    assert board.read(0) == b"two" and board.read(1) == b""
    board.write(0, b"three")
    assert board.read(0) == b"three"
