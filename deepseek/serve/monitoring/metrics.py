"""Prometheus metrics in a registry of their own: requests, tokens, queue, time to first token, time per token.

Counts that the engine keeps anyway are read when somebody asks, so they cost nothing on the way of a request.
Without prometheus_client nothing is counted and `/metrics` says how to install it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from deepseek.errors import RequestError
from deepseek.serve.service import Service
from deepseek.serve.text.engine import Done

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics(Protocol):
    """What the server tells about itself."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        ...

    def answer(self, model: str, done: Done) -> None:
        """Count an answer that is complete."""
        ...

    def render(self) -> tuple[bytes, str]:
        """Return the text for Prometheus and its content type."""
        ...


def build_metrics(service: Service) -> Metrics:
    """Return metrics of `service`, or ones that count nothing where prometheus_client is not installed."""
    return PrometheusMetrics(service) if importlib.util.find_spec("prometheus_client") else NoMetrics()


class NoMetrics:
    """Counts nothing."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Do nothing."""

    def answer(self, model: str, done: Done) -> None:
        """Do nothing."""

    def render(self) -> tuple[bytes, str]:
        """Raise RequestError with the install line."""
        raise RequestError(
            "metrics need prometheus-client, which is not installed on the server",
            status=501,
            fix="pip install 'deepseek-framework[serve]'",
        )


class PrometheusMetrics:
    """Counts with prometheus_client."""

    def __init__(self, service: Service) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._service = service
        self._registry = CollectorRegistry()
        self._requests = Counter("deepseek_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self._request_seconds = Histogram(
            "deepseek_request_seconds", "Seconds a request took", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._first_token = Histogram(
            "deepseek_time_to_first_token_seconds",
            "Seconds from a request's arrival at the engine to its first token",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._per_token = Histogram(
            "deepseek_time_per_token_seconds",
            "Mean seconds a token after the first, for each answer",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def answer(self, model: str, done: Done) -> None:
        """Count an answer that is complete."""
        if done.tokens:
            self._first_token.labels(model).observe(done.first_token_seconds)
        if done.tokens > 1:
            self._per_token.labels(model).observe((done.seconds - done.first_token_seconds) / (done.tokens - 1))

    def render(self) -> tuple[bytes, str]:
        """Return the text for Prometheus and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield what the engines count (called by the registry)."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        ready = GaugeMetricFamily("deepseek_ready", "1 when every model is ready")
        ready.add_metric([], float(self._service.ready))
        waiting = GaugeMetricFamily("deepseek_queue_depth", "Answers that wait", labels=["model"])
        active = GaugeMetricFamily("deepseek_active", "Answers that are generated now", labels=["model"])
        answers = CounterMetricFamily("deepseek_answers", "Answers by how they ended", labels=["model", "outcome"])
        tokens = CounterMetricFamily("deepseek_tokens", "Tokens, of prompts and generated", labels=["model", "kind"])
        for name, hosted in self._service.hosted.items():
            stats = hosted.engine.stats()
            waiting.add_metric([name], stats.waiting)
            active.add_metric([name], stats.active)
            for outcome in ("finished", "cancelled", "failed", "refused"):
                answers.add_metric([name, outcome], getattr(stats, outcome))
            tokens.add_metric([name, "prompt"], stats.prompt_tokens)
            tokens.add_metric([name, "generated"], stats.generated_tokens)
        yield from (ready, waiting, active, answers, tokens)

    def describe(self) -> list[Metric]:
        """Return nothing: the names are found when collected (called by the registry)."""
        return []
