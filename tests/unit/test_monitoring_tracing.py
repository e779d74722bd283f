"""Traces: one span a request and its parts in it, in the caller's trace; nothing where they are off."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from starlette.testclient import TestClient

from deepseek.serve import Service, create_app
from deepseek.serve.monitoring.tracing import Tracing, TracingOptions, record
from deepseek.serve.rest.paths import route_of
from tests.fake_serving import FakeModel
from tests.fake_tensor import FakeTensorModel

memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def traced(share, requests):
    """Return the spans of requests, (method, path, body, headers) each."""
    exporter = memory.InMemorySpanExporter()
    tracing = Tracing(TracingOptions(share=share), exporter)
    service, checked = Service({"say": FakeModel("Hello. ", end=True), "three": FakeTensorModel()}), threading.Event()
    whole = tracing.wrap(create_app(service, on_checked=lambda problem: checked.set()), route_of)
    with TestClient(whole, raise_server_exceptions=False) as client:
        assert checked.wait(10)
        for method, path, body, headers in requests:
            client.request(method, path, json=body, headers=headers)
    tracing.close()
    return exporter.get_finished_spans()


ASK = ("POST", "/v1/completions", {"model": "say", "prompt": "secret", "max_tokens": 4}, {})


def test_a_request_has_a_span_with_its_parts_in_it():
    spans = {span.name: span for span in traced(1.0, [ASK])}
    whole, first, tokens = spans["POST /v1/completions"], spans["first_token"], spans["tokens"]
    assert whole.parent is None
    for part in (first, tokens):
        assert (part.parent.span_id, part.context.trace_id) == (whole.context.span_id, whole.context.trace_id)
        assert whole.start_time <= part.start_time <= part.end_time <= whole.end_time
    assert first.end_time == pytest.approx(tokens.start_time, abs=1_000_000)
    assert tokens.attributes["deepseek.tokens" if "deepseek.tokens" in tokens.attributes else "tokens"] == 4
    told = whole.attributes
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/completions", 200)
    assert (told["deepseek.model"], told["deepseek.tokens_out"]) == ("say", 4)
    assert not any("secret" in str(span.to_json()) for span in spans.values())


@pytest.mark.parametrize("flag", ["01", "00"])
def test_the_callers_trace_goes_on_and_the_caller_decides(flag):
    header = {"traceparent": f"00-{TRACE}-{PARENT}-{flag}"}
    spans = traced(0.0 if flag == "01" else 1.0, [(*ASK[:3], header)])
    assert bool(spans) == (flag == "01")
    for span in spans:
        assert f"{span.context.trace_id:032x}" == TRACE
    if spans:
        assert f"{spans[-1].parent.span_id:016x}" == PARENT and spans[-1].parent.is_remote


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
    ],
)
def test_a_header_that_is_no_trace_begins_a_new_one(header):
    (span,) = traced(1.0, [("GET", "/health", None, {"traceparent": header})])
    assert span.parent is None and f"{span.context.trace_id:032x}" != TRACE


def test_nothing_is_traced_that_is_not_drawn_and_errors_are_marked():
    assert traced(0.0, [ASK]) == ()
    refused, missing = traced(1.0, [("POST", "/v1/completions", {"prompt": 1}, {}), ("GET", "/secret", None, {})])
    assert refused.attributes["http.response.status_code"] == 400 and refused.status.is_ok
    assert (missing.name, missing.attributes["http.response.status_code"]) == ("GET other", 404)


def test_without_a_trace_recording_does_nothing():
    record("queue", time.monotonic(), time.monotonic())

    async def elsewhere():
        record("run", 0.0, 1.0, rows=3)

    asyncio.run(elsewhere())
