"""Traces of requests with OpenTelemetry, as an option: a span for each request, and in it queue, run and tokens.

A caller's trace goes on where a request names it (W3C Trace Context, `traceparent`). Spans carry route, status, model
and counts, never what was asked or answered. Off by default: then the application is not wrapped, and `record` looks at
one variable. Not here: metrics (see `metrics`).
"""

from __future__ import annotations

import re
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from deepseek.config import Config
from deepseek.lazy import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from deepseek.serve.text.events import Done

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class TracingOptions(Config):
    """Where traces go."""

    endpoint: str = Field("http://127.0.0.1:4318/v1/traces", pattern=r"^https?://")
    """An OpenTelemetry collector's address for traces (OTLP over HTTP)."""
    share: float = Field(0.1, ge=0, le=1)
    """Part of the requests that are traced; those whose caller traces them are too."""
    service_name: str = "deepseek"
    """The name under which traces of this server are found."""


class _Active(NamedTuple):
    """The request's span that the running task works for."""

    tracer: Tracer
    context: Any


_ACTIVE: ContextVar[_Active | None] = ContextVar("deepseek_trace", default=None)


class Tracing:
    """Makes and exports spans."""

    def __init__(self, options: TracingOptions | None = None, exporter: SpanExporter | None = None) -> None:
        """Raises MissingExtraError without [tracing]. `exporter` stands in for the one over HTTP."""
        require("opentelemetry", "tracing")
        require("opentelemetry.sdk", "tracing")
        options = options or TracingOptions()
        self._provider = _provider(options, exporter)
        self.tracer: Tracer = self._provider.get_tracer("deepseek.serve")

    def wrap(self, app: ASGIApp, route_of: Callable[[str], str]) -> ASGIApp:
        """Return the application with a span around each request; `route_of` names routes by paths."""
        return _Traced(app, self.tracer, route_of)

    def close(self) -> None:
        """Export what waits, and end."""
        self._provider.shutdown()


def record(name: str, start: float, end: float, **attributes: str | int | float) -> None:
    """Add a span to the running request's, from `start` to `end` of `time.monotonic`; nothing where none is traced."""
    active = _ACTIVE.get()
    if active is None:
        return
    offset = time.time_ns() - time.monotonic_ns()
    span = active.tracer.start_span(name, active.context, attributes=attributes, start_time=offset + int(start * 1e9))
    span.end(offset + int(end * 1e9))


def record_answer(model: str, done: Done) -> None:
    """Add the spans of a language model's answer that is complete: up to its first token, and from there on."""
    if _ACTIVE.get() is None:
        return
    end = time.monotonic()
    first = end - done.seconds + done.first_token_seconds
    record("first_token", end - done.seconds, first, model=model, cached_tokens=done.cached_tokens)
    record("tokens", first, end, model=model, tokens=done.tokens, reason=done.reason)


class _Traced:
    """ASGI middleware: one span a request."""

    def __init__(self, app: ASGIApp, tracer: Tracer, route_of: Callable[[str], str]) -> None:
        self._app = app
        self._tracer = tracer
        self._route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        route = self._route_of(scope["path"][:1024])
        method = scope.get("method", "WEBSOCKET")
        span = self._tracer.start_span(
            f"{method} {route}",
            _caller(scope),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        if not span.is_recording():
            await self._app(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        token = _ACTIVE.set(_Active(self._tracer, set_span_in_context(span)))
        try:
            await self._app(scope, receive, watched)
        finally:
            _ACTIVE.reset(token)
            state = scope.get("state", {})
            for name in ("model", "version", "request_id", "tokens_in", "tokens_out"):
                if name in state:
                    span.set_attribute(f"deepseek.{name}", state[name])
            span.end()


def _caller(scope: Scope) -> Any:
    """Return the context of the caller's span, an empty one where the request names none that is valid."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    match = _PARENT.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    if match is None or match[1] == "ff" or (match[1] == "00" and len(given[0]) != 55):
        return Context()
    caller = SpanContext(
        int(match[2], 16), int(match[3], 16), is_remote=True, trace_flags=TraceFlags(int(match[4], 16))
    )
    return set_span_in_context(NonRecordingSpan(caller), Context()) if caller.is_valid else Context()


def _provider(options: TracingOptions, exporter: SpanExporter | None) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource({"service.name": options.service_name})
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(options.share)), resource=resource)
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return provider
    require("opentelemetry.exporter", "tracing")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=options.endpoint)))
    return provider
