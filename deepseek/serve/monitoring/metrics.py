"""Prometheus metrics in a registry of their own: requests, tokens, queue, time to first token, time per token.

Counts that other parts keep anyway are read when somebody asks (see `collect`), so they cost nothing on the way of a
request. Without prometheus_client nothing is counted and `/metrics` says how to install it.
Of several worker processes each tells its own numbers, under a label `worker`: a scrape reaches one of them, and over
some scrapes all are seen. Not here: names, labels and units (see `definitions`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from deepseek.errors import RequestError
from deepseek.serve.monitoring.collect import Sources, samples
from deepseek.serve.monitoring.definitions import BY_NAME, SECONDS, Definition
from deepseek.serve.monitoring.tracing import record_answer
from deepseek.serve.service import Service
from deepseek.serve.text.engine import Done

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram
    from prometheus_client.metrics_core import Metric


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


def build_metrics(service: Service, sources: Sources | None = None) -> Metrics:
    """Return metrics of `service`, or ones that count nothing where prometheus_client is not installed.

    `sources` are the parts beside the models: cache, sessions, drift, workers.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        return NoMetrics()
    return PrometheusMetrics(service, sources)


class NoMetrics:
    """Counts nothing."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """Do nothing."""

    def answer(self, model: str, done: Done) -> None:
        """Only trace it."""
        record_answer(model, done)

    def render(self) -> tuple[bytes, str]:
        """Raise RequestError with the install line."""
        raise RequestError(
            "metrics need prometheus-client, which is not installed on the server",
            status=501,
            fix="pip install 'deepseek-framework[serve]'",
        )


class PrometheusMetrics:
    """Counts with prometheus_client."""

    def __init__(self, service: Service, sources: Sources | None = None) -> None:
        from prometheus_client import CollectorRegistry, Counter

        self._service = service
        self._sources = sources or Sources()
        self._registry = CollectorRegistry()
        facts = self._sources.facts() if self._sources.facts is not None else {}
        self._worker: tuple[str, ...] = (str(facts["worker"]),) if "worker" in facts else ()
        requests = BY_NAME["deepseek_requests_total"]
        names = self._names(requests)
        self._requests = Counter(requests.name, requests.help, names, registry=self._registry)
        self._request_seconds = self._histogram("deepseek_request_seconds")
        self._first_token = self._histogram("deepseek_time_to_first_token_seconds")
        self._per_token = self._histogram("deepseek_time_per_token_seconds")
        # finding a child by its labels costs more than counting
        self._by_request: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._by_model: dict[str, tuple[Histogram, Histogram]] = {}
        self._registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        children = self._by_request.get((route, status))
        if children is None:
            children = (
                self._requests.labels(route, str(status), *self._worker),
                self._request_seconds.labels(route, *self._worker),
            )
            self._by_request[route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def answer(self, model: str, done: Done) -> None:
        """Count an answer that is complete."""
        children = self._by_model.get(model)
        if children is None:
            labels = (model, *self._worker)
            children = self._by_model[model] = self._first_token.labels(*labels), self._per_token.labels(*labels)
        if done.tokens:
            children[0].observe(done.first_token_seconds)
        if done.tokens > 1:
            children[1].observe((done.seconds - done.first_token_seconds) / (done.tokens - 1))
        record_answer(model, done)

    def render(self) -> tuple[bytes, str]:
        """Return the text for Prometheus and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield what the parts of the server count (called by the registry)."""
        families: dict[str, Any] = {}
        for name, labels, value in samples(self._service, self._sources):
            family = families.get(name)
            if family is None:
                family = families[name] = self._family(name)
            family.add_metric((*labels, *self._worker), value)
        yield from families.values()

    def describe(self) -> list[Metric]:
        """Return nothing: the names are found when collected (called by the registry)."""
        return []

    def _histogram(self, name: str) -> Histogram:
        from prometheus_client import Histogram

        definition = BY_NAME[name]
        names = self._names(definition)
        return Histogram(name, definition.help, names, buckets=SECONDS, registry=self._registry)

    def _names(self, definition: Definition) -> tuple[str, ...]:
        """Return the names of a metric's labels."""
        return (*definition.labels, "worker") if self._worker else definition.labels

    def _family(self, name: str) -> Any:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        definition = BY_NAME[name]
        kind = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
        return kind(definition.name, definition.help, labels=self._names(definition))
