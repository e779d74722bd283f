"""What the dashboard draws: rows of panels, each with the queries behind it. Not here: Grafana's JSON (`dashboard`)."""

from __future__ import annotations

from typing import NamedTuple

from deepseek.serve.monitoring.definitions import BY_NAME, SCRAPED, Definition
from deepseek.serve.monitoring.promql import selectors

_MODEL = "{{model}}"


class Query(NamedTuple):
    """One line of a panel."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """One chart; `unit` is Grafana's."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    help: str = ""


def rate(name: str, *by: str, where: str = "") -> str:
    """Return the query of a counter's rate, summed by labels."""
    definition = _known(name, *by)
    matcher = f"{{{where}}}" if where else ""
    grouping = f" by ({', '.join(by)})" if by else ""
    if definition.kind != "counter" and not name.endswith(("_bucket", "_sum", "_count")):
        raise ValueError(f"{name} is no counter")
    return f"sum{grouping} (rate({name}{matcher}[$__rate_interval]))"


def quantile(share: float, name: str, *by: str) -> str:
    """Return the query of a histogram's quantile by labels."""
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', 'le', *by)})"


def gauge(name: str, *by: str) -> str:
    """Return the query of a gauge, summed over processes by labels."""
    _known(name, *by)
    grouping = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouping} ({name})"


def ratio(above: str, below: str) -> str:
    """Return the query of one by the other."""
    return f"{above} / {below}"


def chart(title: str, unit: str, *lines: tuple[str, str]) -> Panel:
    """Return a panel of (query, legend), explained by the metrics it reads."""
    read = dict.fromkeys(SCRAPED[one.name].help for line in lines for one in selectors(line[0]))
    return Panel(title, unit, tuple(Query(*line) for line in lines), "; ".join(read) + ".")


def _known(name: str, *labels: str) -> Definition:
    """Return the definition of a series. Raises KeyError for an unknown one, ValueError for a label it lacks."""
    definition = BY_NAME.get(name) or SCRAPED[name]
    lacking = [label for label in labels if label not in (*definition.labels, "le")]
    if lacking:
        raise ValueError(f"{name} has no label {', '.join(lacking)}")
    return definition


def rows() -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """Return titles and panels of all rows."""
    return (
        ("Requests", _requests()),
        ("Models", _models()),
        ("Language models", _language_models()),
        ("Models of fixed shape", _fixed_shapes()),
        ("Streamed speech", _speech()),
        ("Cache and sessions", _kept()),
        ("Drift", _drift()),
        ("Process", _process()),
    )


def _requests() -> tuple[Panel, ...]:
    return (
        chart("Requests a second", "reqps", (rate("deepseek_requests_total", "route"), "{{route}}")),
        chart(
            "Errors",
            "percentunit",
            (
                ratio(rate("deepseek_requests_total", where='status=~"5.."'), rate("deepseek_requests_total")),
                "5xx",
            ),
            (
                ratio(rate("deepseek_requests_total", where='status="429"'), rate("deepseek_requests_total")),
                "refused (429)",
            ),
        ),
        chart("Over a limit, a second", "reqps", (rate("deepseek_limited_total", "limit"), "{{limit}}")),
        chart("Latency, median", "s", (quantile(0.5, "deepseek_request_seconds", "route"), "{{route}}")),
        chart("Latency, 99%", "s", (quantile(0.99, "deepseek_request_seconds", "route"), "{{route}}")),
    )


def _models() -> tuple[Panel, ...]:
    return (
        chart("Ready", "short", (gauge("deepseek_model_ready", "model", "version"), _MODEL + " {{version}}")),
        chart(
            "Queue",
            "short",
            (gauge("deepseek_queue_depth", "model"), _MODEL + " waiting"),
            (gauge("deepseek_active", "model"), _MODEL + " running"),
        ),
        chart(
            "Queue in use",
            "percentunit",
            (ratio(gauge("deepseek_queue_depth", "model"), gauge("deepseek_queue_limit", "model")), _MODEL),
        ),
        chart(
            "Answers a second",
            "reqps",
            (rate("deepseek_answers_total", "model", "outcome"), _MODEL + " {{outcome}}"),
        ),
    )


def _language_models() -> tuple[Panel, ...]:
    return (
        chart("Tokens a second", "short", (rate("deepseek_tokens_total", "model", "kind"), _MODEL + " {{kind}}")),
        chart(
            "Time to first token, 95%",
            "s",
            (quantile(0.95, "deepseek_time_to_first_token_seconds", "model"), _MODEL),
        ),
        chart("Time per token, 95%", "s", (quantile(0.95, "deepseek_time_per_token_seconds", "model"), _MODEL)),
        chart(
            "Pages in use",
            "percentunit",
            (ratio(gauge("deepseek_pages_used", "model"), gauge("deepseek_pages_limit", "model")), _MODEL),
        ),
        chart(
            "Prompt tokens not computed",
            "percentunit",
            (
                ratio(
                    rate("deepseek_cached_tokens_total", "model"),
                    rate("deepseek_tokens_total", "model", where='kind="prompt"'),
                ),
                _MODEL,
            ),
        ),
        chart(
            "Answers in a step, pages given up",
            "short",
            (gauge("deepseek_step_answers", "model"), _MODEL + " answers"),
            (rate("deepseek_preemptions_total", "model"), _MODEL + " preempted a second"),
        ),
    )


def _fixed_shapes() -> tuple[Panel, ...]:
    return (
        chart(
            "Rows in a run",
            "short",
            (ratio(rate("deepseek_rows_total", "model"), rate("deepseek_runs_total", "model")), _MODEL),
        ),
        chart(
            "Seconds of a run",
            "s",
            (ratio(rate("deepseek_run_seconds_total", "model"), rate("deepseek_runs_total", "model")), _MODEL),
        ),
        chart(
            "Requests waiting for a run, mean",
            "short",
            (rate("deepseek_queue_seconds_total", "model"), _MODEL),
        ),
    )


def _kept() -> tuple[Panel, ...]:
    return (
        chart("Cache lookups a second", "reqps", (rate("deepseek_cache_lookups_total", "result"), "{{result}}")),
        chart(
            "Cache",
            "short",
            (gauge("deepseek_cache_on"), "on"),
            (gauge("deepseek_redis_up"), "Redis"),
            (gauge("deepseek_cache_entries"), "answers"),
        ),
        chart(
            "Kept and not kept a second",
            "short",
            (rate("deepseek_cache_stored_total"), "kept"),
            (rate("deepseek_cache_refused_total"), "asked for once"),
        ),
        chart(
            "Memory",
            "bytes",
            (gauge("deepseek_cache_bytes"), "cache"),
            (gauge("deepseek_session_bytes"), "sessions"),
        ),
        chart(
            "Sessions",
            "short",
            (gauge("deepseek_sessions"), "in memory"),
            (rate("deepseek_session_calls_total", "kind"), "{{kind}} a second"),
            (rate("deepseek_session_store_failures_total"), "Redis failures a second"),
        ),
    )


def _speech() -> tuple[Panel, ...]:
    return (
        chart(
            "Streams",
            "short",
            (gauge("deepseek_speech_streams"), "open"),
            (rate("deepseek_speech_utterances_total"), "utterances a second"),
            (rate("deepseek_speech_refused_total"), "refused a second"),
        ),
        chart(
            "Real-time factor",
            "short",
            (ratio(rate("deepseek_speech_busy_seconds_total"), rate("deepseek_speech_audio_seconds_total")), "busy"),
        ),
    )


def _drift() -> tuple[Panel, ...]:
    return (
        chart("Features that drifted", "short", (gauge("deepseek_drift_alarms", "model"), _MODEL)),
        chart(
            "Population stability index, five highest",
            "short",
            ("topk(5, max by (model, feature) (deepseek_drift_psi))", _MODEL + " {{feature}}"),
        ),
        chart(
            "Anomalies",
            "percentunit",
            (ratio(rate("deepseek_anomalies_total", "model"), rate("deepseek_watched_total", "model")), _MODEL),
        ),
        chart(
            "Rows compared a second",
            "short",
            (rate("deepseek_watched_total", "model"), _MODEL),
            (rate("deepseek_unwatched_total", "model"), _MODEL + " left out"),
        ),
    )


def _process() -> tuple[Panel, ...]:
    return (
        chart(
            "Memory",
            "bytes",
            ("process_resident_memory_bytes", "in RAM {{instance}} {{worker}}"),
            ("process_virtual_memory_bytes", "address space {{instance}} {{worker}}"),
        ),
        chart(
            "Processor", "short", ("rate(process_cpu_seconds_total[$__rate_interval])", "cores {{instance}} {{worker}}")
        ),
        chart(
            "Threads and descriptors",
            "short",
            ("process_threads", "threads {{instance}} {{worker}}"),
            ("process_open_fds", "descriptors {{instance}} {{worker}}"),
            ("process_max_fds", "descriptors allowed {{instance}} {{worker}}"),
        ),
        chart(
            "Workers",
            "short",
            ("max(deepseek_workers)", "workers"),
            ("max(deepseek_worker_restarts_total)", "restarts"),
            ("min(deepseek_ready)", "ready"),
        ),
        chart("Up for", "s", ("time() - process_start_time_seconds", "{{instance}} {{worker}}")),
    )
