"""Alert rules for Prometheus as YAML, made from the table of metrics. Source: Prometheus' alerting rules.

Not here: whom Alertmanager tells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from deepseek.config import Config
from deepseek.yaml_source import dump_yaml


class AlertLimits(Config):
    """From when on somebody should look."""

    error_share: float = Field(0.01, gt=0, lt=1)
    """Part of the requests that end in 5xx."""
    p99_seconds: float = Field(5.0, gt=0)
    """Seconds within which 99 of 100 requests of a route should be answered."""
    queue_share: float = Field(0.8, gt=0, le=1)
    """Part of the queue that is in use."""
    refused_share: float = Field(0.05, gt=0, lt=1)
    """Part of the requests that get 429."""
    limited_share: float = Field(0.2, gt=0, lt=1)
    """Part of the requests that are over their client's own limit."""
    pages_share: float = Field(0.95, gt=0, le=1)
    """Part of the KV cache's pages that running answers hold."""
    anomaly_share: float = Field(0.05, gt=0, lt=1)
    """Part of the requests that are unlike the training data."""
    descriptor_share: float = Field(0.8, gt=0, le=1)
    """Part of the allowed file descriptors that are open."""


class Alert(NamedTuple):
    """One rule; `wait` is how long the condition must hold."""

    name: str
    condition: str
    wait: str
    severity: str
    summary: str
    advice: str


def alerts(limits: AlertLimits | None = None) -> tuple[Alert, ...]:
    """Return all rules."""
    at = limits or AlertLimits()
    return (*_of_traffic(at), *_of_health(at), *_of_data(at))


def _of_traffic(at: AlertLimits) -> tuple[Alert, ...]:
    requests = "sum (rate(deepseek_requests_total[5m]))"
    per_route = "sum by (le, route) (rate(deepseek_request_seconds_bucket[5m]))"
    queue = "sum by (model) (deepseek_queue_depth) / sum by (model) (deepseek_queue_limit)"
    pages = "sum by (model) (deepseek_pages_used) / sum by (model) (deepseek_pages_limit)"
    return (
        Alert(
            "DeepseekErrors",
            f'sum (rate(deepseek_requests_total{{status=~"5.."}}[5m])) / {requests} > {at.error_share}',
            "5m",
            "critical",
            "{{ $value | humanizePercentage }} of the requests fail",
            "The server's log has each failure under its request id.",
        ),
        Alert(
            "DeepseekSlow",
            f"histogram_quantile(0.99, {per_route}) > {at.p99_seconds}",
            "10m",
            "warning",
            "99% of {{ $labels.route }} take {{ $value | humanizeDuration }}",
            "Look at queue and batch sizes; add instances, or a smaller form of the model (deepseek compress).",
        ),
        Alert(
            "DeepseekQueueFull",
            f"{queue} > {at.queue_share}",
            "5m",
            "warning",
            "the queue of {{ $labels.model }} is {{ $value | humanizePercentage }} full",
            "More requests come than are answered: add replicas.",
        ),
        Alert(
            "DeepseekRefusing",
            f'sum (rate(deepseek_requests_total{{status="429"}}[5m])) / {requests} > {at.refused_share}',
            "5m",
            "warning",
            "{{ $value | humanizePercentage }} of the requests are refused",
            "The server is saturated, or clients are over their rate: DeepseekLimited tells which.",
        ),
        Alert(
            "DeepseekLimited",
            f"sum (rate(deepseek_limited_total[5m])) / {requests} > {at.limited_share}",
            "10m",
            "info",
            "{{ $value | humanizePercentage }} of the requests are over their client's own limit",
            "A client is too eager, or guesses keys: the audit log tells who. Raise --rate if that is as it should be.",
        ),
        Alert(
            "DeepseekPagesFull",
            f"{pages} > {at.pages_share}",
            "10m",
            "warning",
            "running answers of {{ $labels.model }} hold {{ $value | humanizePercentage }} of its pages",
            "Answers give up their pages and compute again: raise kv_bytes, or lower max_active.",
        ),
    )


def _of_health(at: AlertLimits) -> tuple[Alert, ...]:
    return (
        Alert(
            "DeepseekNotReady",
            "min (deepseek_ready) == 0",
            "2m",
            "critical",
            "no model answers",
            "GET /ready tells the state of each model; the log tells why.",
        ),
        Alert(
            "DeepseekModelNotReady",
            "min by (model, version) (deepseek_model_ready) == 0",
            "10m",
            "warning",
            "{{ $labels.model }} version {{ $labels.version }} does not answer",
            "The log tells why it could not be loaded; an earlier version goes on meanwhile.",
        ),
        Alert(
            "DeepseekWorkerRestarts",
            "increase(deepseek_worker_restarts_total[15m]) > 2",
            "0m",
            "critical",
            "workers were replaced {{ $value | humanize }} times in 15 minutes",
            "They die or hang: the log has the exit code or signal; out of memory is signal KILL.",
        ),
        Alert(
            "DeepseekDescriptors",
            f"process_open_fds / process_max_fds > {at.descriptor_share}",
            "10m",
            "warning",
            "{{ $value | humanizePercentage }} of the file descriptors are open",
            "Clients keep connections open: raise the limit (ulimit -n) or lower max_connections.",
        ),
    )


def _of_data(at: AlertLimits) -> tuple[Alert, ...]:
    anomalies = (
        "sum by (model) (rate(deepseek_anomalies_total[15m])) / sum by (model) (rate(deepseek_watched_total[15m]))"
    )
    return (
        Alert(
            "DeepseekCacheOff",
            "max (deepseek_cache_on) == 0",
            "1h",
            "info",
            "the cache of answers has switched itself off",
            "Hardly any request comes twice. It costs nothing; cache_bytes 0 frees its memory.",
        ),
        Alert(
            "DeepseekRedisDown",
            "min (deepseek_redis_up) == 0",
            "5m",
            "warning",
            "Redis does not answer in time",
            "Requests go on without it; sessions live in each process until it is back.",
        ),
        Alert(
            "DeepseekDrift",
            "max by (model) (deepseek_drift_alarms) > 0",
            "15m",
            "warning",
            "{{ $value | humanize }} features of {{ $labels.model }} drifted from its training data",
            "deepseek_drift_psi tells which. Check what feeds them; measure again; train on newer data.",
        ),
        Alert(
            "DeepseekAnomalies",
            f"{anomalies} > {at.anomaly_share}",
            "15m",
            "warning",
            "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} are unlike its training data",
            "New traffic, a broken sender, or an attack.",
        ),
    )


def build_alerts(limits: AlertLimits | None = None) -> dict[str, Any]:
    """Return the rules as Prometheus' file has them."""
    rules = [
        {
            "alert": one.name,
            "expr": one.condition,
            "for": one.wait,
            "labels": {"severity": one.severity},
            "annotations": {"summary": one.summary, "description": one.advice},
        }
        for one in alerts(limits)
    ]
    return {"groups": [{"name": "deepseek", "rules": rules}]}


def alerts_yaml(limits: AlertLimits | None = None) -> str:
    """Return the rules as the text of a file."""
    return dump_yaml(build_alerts(limits))
