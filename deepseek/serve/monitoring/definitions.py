"""Every metric of the server in one table: what is scraped, drawn and watched by alerts comes from here.

Names follow Prometheus' conventions (base units, `_total` for counters). Labels have few values: routes, models,
outcomes, never what a client chose. Not here: where the numbers come from (see `metrics` and `collect`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["seconds", "bytes", "tokens", "requests", "pages", "rows", "events", "ratio", "yes or no", "count"]

Across = Literal["sum", "max", "min", "each"]
"""How the values of several workers become one; "each" keeps them apart under a label `worker`."""

Sample = tuple[str, tuple[str, ...], float]
"""Name, the labels' values in the definition's order, value."""
Series = tuple[str, tuple[str, ...]]
"""Name and labels' values."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Bounds of the buckets of all histograms."""


class Definition(NamedTuple):
    """One metric. `name` is the one that is scraped; a histogram has `_bucket`, `_sum` and `_count` after it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: Unit = "count"
    across: Across = "sum"

    @property
    def scraped(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return (self.name,)


_MODEL = ("model",)

DEFINITIONS: tuple[Definition, ...] = (
    Definition("deepseek_requests_total", "counter", "Requests answered", ("route", "status"), "requests"),
    Definition("deepseek_request_seconds", "histogram", "Seconds a request took", ("route",), "seconds"),
    Definition(
        "deepseek_time_to_first_token_seconds",
        "histogram",
        "Seconds from a request's arrival at the engine to its first token",
        _MODEL,
        "seconds",
    ),
    Definition(
        "deepseek_time_per_token_seconds",
        "histogram",
        "Mean seconds a token after the first, for each answer",
        _MODEL,
        "seconds",
    ),
    Definition("deepseek_limited_total", "counter", "Requests over their client's limit", ("limit",), "requests"),
    Definition("deepseek_ready", "gauge", "1 when every model is ready", (), "yes or no", "min"),
    Definition(
        "deepseek_model_ready", "gauge", "1 when this version answers", ("model", "version"), "yes or no", "min"
    ),
    Definition("deepseek_queue_depth", "gauge", "Answers that wait", _MODEL, "requests"),
    Definition(
        "deepseek_queue_limit", "gauge", "Answers that may wait before requests are refused", _MODEL, "requests"
    ),
    Definition("deepseek_active", "gauge", "Answers that are generated now", _MODEL, "requests"),
    Definition("deepseek_answers_total", "counter", "Answers by how they ended", ("model", "outcome"), "requests"),
    Definition("deepseek_tokens_total", "counter", "Tokens, of prompts and generated", ("model", "kind"), "tokens"),
    Definition("deepseek_cached_tokens_total", "counter", "Tokens of prompts that were not computed", _MODEL, "tokens"),
    Definition(
        "deepseek_preemptions_total", "counter", "Answers that gave up their pages for a while", _MODEL, "events"
    ),
    Definition("deepseek_pages_used", "gauge", "Pages of the KV cache that running answers hold", _MODEL, "pages"),
    Definition("deepseek_pages_limit", "gauge", "Pages of the KV cache", _MODEL, "pages"),
    Definition("deepseek_step_answers", "gauge", "Answers in the last step", _MODEL, "requests"),
    Definition("deepseek_rows_total", "counter", "Rows run by a model of fixed shape", _MODEL, "rows"),
    Definition("deepseek_runs_total", "counter", "Runs of a model of fixed shape", _MODEL, "events"),
    Definition("deepseek_queue_seconds_total", "counter", "Seconds requests waited for their run", _MODEL, "seconds"),
    Definition("deepseek_run_seconds_total", "counter", "Seconds of all runs", _MODEL, "seconds"),
    Definition("deepseek_cache_lookups_total", "counter", "Lookups in the cache of answers", ("result",), "requests"),
    Definition("deepseek_cache_stored_total", "counter", "Answers that the cache took", (), "events"),
    Definition("deepseek_cache_refused_total", "counter", "Answers asked for once only, so not kept", (), "events"),
    Definition("deepseek_cache_entries", "gauge", "Answers in memory", (), "count"),
    Definition("deepseek_cache_bytes", "gauge", "Memory of these answers", (), "bytes"),
    Definition(
        "deepseek_cache_on",
        "gauge",
        "0 while the cache is off because hardly anything is found",
        (),
        "yes or no",
        "max",
    ),
    Definition("deepseek_redis_up", "gauge", "1 when Redis answers in time", (), "yes or no", "min"),
    Definition("deepseek_sessions", "gauge", "Conversations in memory", (), "count"),
    Definition("deepseek_session_bytes", "gauge", "Memory of these conversations", (), "bytes"),
    Definition("deepseek_session_calls_total", "counter", "Conversations read and written", ("kind",), "events"),
    Definition("deepseek_session_store_failures_total", "counter", "Times Redis was away for sessions", (), "events"),
    Definition("deepseek_speech_streams", "gauge", "Streams of speech that are open", (), "count"),
    Definition("deepseek_speech_utterances_total", "counter", "Utterances recognised in streams", (), "events"),
    Definition("deepseek_speech_refused_total", "counter", "Streams refused for lack of room", (), "requests"),
    Definition("deepseek_speech_audio_seconds_total", "counter", "Seconds of sound recognised", (), "seconds"),
    Definition("deepseek_speech_busy_seconds_total", "counter", "Seconds that recognising it took", (), "seconds"),
    Definition("deepseek_watched_total", "counter", "Requests compared with the training data", _MODEL, "rows"),
    Definition("deepseek_unwatched_total", "counter", "Requests not compared, for lack of time", _MODEL, "rows"),
    Definition("deepseek_anomalies_total", "counter", "Requests unlike the training data", _MODEL, "rows"),
    Definition("deepseek_drift_psi", "gauge", "Population stability index", ("model", "feature"), "ratio", "max"),
    Definition(
        "deepseek_drift_alarms", "gauge", "Features that drifted from the training data", _MODEL, "count", "max"
    ),
    Definition("deepseek_workers", "gauge", "Worker processes", (), "count", "max"),
    Definition("deepseek_worker_restarts_total", "counter", "Worker processes that were replaced", (), "events", "max"),
    Definition("process_resident_memory_bytes", "gauge", "Memory in RAM", (), "bytes", "each"),
    Definition("process_virtual_memory_bytes", "gauge", "Address space", (), "bytes", "each"),
    Definition("process_cpu_seconds_total", "counter", "Processor time, user and system", (), "seconds", "each"),
    Definition("process_threads", "gauge", "Threads", (), "count", "each"),
    Definition("process_open_fds", "gauge", "Open file descriptors", (), "count", "each"),
    Definition("process_max_fds", "gauge", "File descriptors that may be open", (), "count", "each"),
    Definition(
        "process_start_time_seconds", "gauge", "Start of the process, seconds since 1970", (), "seconds", "each"
    ),
)

BY_NAME = {definition.name: definition for definition in DEFINITIONS}
SCRAPED = {series: definition for definition in DEFINITIONS for series in definition.scraped}
"""Names of series and what they belong to."""
