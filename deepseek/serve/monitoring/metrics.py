"""The server's metrics: requests, tokens, queue, time to first token, time per token; Prometheus' text of them.

Counts that other parts keep anyway are read when somebody asks (see `collect`), so they cost nothing on the way of a
request. Without prometheus_client all is counted for the dashboard, and `/metrics` says how to install it.
Any of several worker processes tells the sums of all (see `together`). Not here: names, labels and units (see
`definitions`).
"""

from __future__ import annotations

import importlib.util
import os
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from deepseek.errors import RequestError
from deepseek.serve.monitoring.collect import Sources, samples
from deepseek.serve.monitoring.definitions import SCRAPED, SECONDS, Series
from deepseek.serve.monitoring.together import Together, Totals
from deepseek.serve.monitoring.tracing import record_answer
from deepseek.serve.service import Service
from deepseek.serve.text.engine import Done

if TYPE_CHECKING:
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

    def totals(self) -> Totals:
        """Return everything that is known now, of all workers."""
        ...

    def publish(self) -> None:
        """Let other workers know what this one has counted."""
        ...

    @property
    def source(self) -> int:
        """The process whose life the counts have: this one, or the supervisor of all workers."""
        ...


def build_metrics(service: Service, sources: Sources | None = None, together: Together | None = None) -> Metrics:
    """Return metrics of `service`, whose text can't be had where prometheus_client is not installed.

    `sources` are the parts beside the models: cache, sessions, drift, workers; `together` leads to other workers.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        return PlainMetrics(service, sources, together)
    return PrometheusMetrics(service, sources, together)


class _Spread:
    """One histogram: how many values lie between two bounds, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def series(self, name: str, label: str) -> Iterator[tuple[Series, float]]:
        """Yield its series as Prometheus has them: each bucket counts all values up to its bound."""
        for bound, count in zip(_BOUNDS, accumulate(self.counts), strict=True):
            yield (f"{name}_bucket", (label, bound)), count
        yield (f"{name}_count", (label,)), sum(self.counts)
        yield (f"{name}_sum", (label,)), self.sum


_BOUNDS = (*map(str, SECONDS), "+Inf")


class PlainMetrics:
    """Counts, in the one thread that requests are answered in; it can't write Prometheus' text."""

    def __init__(self, service: Service, sources: Sources | None = None, together: Together | None = None) -> None:
        self._service = service
        self._sources = sources or Sources()
        self._together = together
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds: dict[str, _Spread] = {}
        self._first_token: dict[str, _Spread] = {}
        self._per_token: dict[str, _Spread] = {}

    @property
    def source(self) -> int:
        """The process whose life the counts have: this one, or the supervisor of all workers."""
        return os.getpid() if self._together is None else os.getppid()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        spread = self._seconds.get(route)
        if spread is None:
            spread = self._seconds[route] = _Spread()
        spread.observe(seconds)

    def answer(self, model: str, done: Done) -> None:
        """Count an answer that is complete, and trace it."""
        if model not in self._first_token:
            self._first_token[model], self._per_token[model] = _Spread(), _Spread()
        if done.tokens:
            self._first_token[model].observe(done.first_token_seconds)
        if done.tokens > 1:
            self._per_token[model].observe((done.seconds - done.first_token_seconds) / (done.tokens - 1))
        record_answer(model, done)

    def render(self) -> tuple[bytes, str]:
        """Raise RequestError with the install line."""
        raise RequestError(
            "metrics need prometheus-client, which is not installed on the server",
            status=501,
            fix="pip install 'deepseek-framework[serve]'",
        )

    def totals(self) -> Totals:
        """Return everything that is known now, of all workers."""
        own = self._own()
        return own if self._together is None else self._together.totals(own)

    def publish(self) -> None:
        """Let other workers know what this one has counted."""
        if self._together is not None:
            self._together.write(self._own())

    def _own(self) -> Totals:
        """Return what this process has counted."""
        own: Totals = {(name, labels): value for name, labels, value in samples(self._service, self._sources)}
        for (route, status), count in self._requests.items():
            own["deepseek_requests_total", (route, str(status))] = count
        for name, spreads in (
            ("deepseek_request_seconds", self._seconds),
            ("deepseek_time_to_first_token_seconds", self._first_token),
            ("deepseek_time_per_token_seconds", self._per_token),
        ):
            for label, spread in spreads.items():
                own.update(spread.series(name, label))
        return own


class PrometheusMetrics(PlainMetrics):
    """Counts, and writes Prometheus' text with prometheus_client."""

    def render(self) -> tuple[bytes, str]:
        """Return the text for Prometheus and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        told = CollectorRegistry()
        told.register(_Families(self.totals()))
        return generate_latest(told), CONTENT_TYPE_LATEST


class _Families:
    """Totals as a collector of prometheus_client."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """Yield the families (called by the registry)."""
        from prometheus_client.metrics_core import Metric

        families: dict[str, Metric] = {}
        for (name, values), value in self._totals.items():
            definition = SCRAPED[name]
            family = families.get(definition.name)
            if family is None:
                plain = definition.name.removesuffix("_total") if definition.kind == "counter" else definition.name
                family = families[definition.name] = Metric(plain, definition.help, definition.kind)
            last = ("le",) if name.endswith("_bucket") else ("worker",)
            family.add_sample(name, dict(zip((*definition.labels, *last), values, strict=False)), value)
        yield from families.values()
