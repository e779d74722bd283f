"""What the dashboard draws, as one small JSON object: counts since the start, and what is so now.

The page asks again and again and takes differences, so nothing is kept here and no request pays for it. All comes from
the table that `/metrics` has, so it is of all workers; the page's own requests are left out.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.monitoring.metrics import Metrics
    from deepseek.serve.monitoring.together import Totals
    from deepseek.serve.service import Service

_ANSWERS = re.compile(r"(?:completions|embeddings|:predict|/infer|/generate(?:_stream)?|Infer|Generate)$")
"""Routes that a model answers."""
_OF_MODELS = {
    "deepseek_queue_depth": "waiting",
    "deepseek_active": "active",
    "deepseek_step_answers": "batch",
    "deepseek_pages_used": "blocks_used",
    "deepseek_pages_limit": "blocks_total",
    "deepseek_rows_total": "rows",
    "deepseek_runs_total": "runs",
}
_OF_SPEECH = {
    "deepseek_speech_streams": "open",
    "deepseek_speech_refused_total": "refused",
    "deepseek_speech_utterances_total": "utterances",
    "deepseek_speech_audio_seconds_total": "audio_seconds",
    "deepseek_speech_busy_seconds_total": "busy_seconds",
}
_TOKENS = {"generated": "tokens", "prompt": "prompt_tokens"}


def numbers(service: Service, metrics: Metrics) -> dict[str, Any]:
    """Return the numbers of now; `time` is in seconds of a clock that only goes forward."""
    totals = metrics.totals()
    return {
        "time": time.monotonic(),
        "process": metrics.source,
        "memory_bytes": _sum(totals, "process_resident_memory_bytes"),
        "requests": {**_requests(totals), "limited": _sum(totals, "deepseek_limited_total") or 0},
        "speech": {short: _sum(totals, name) or 0 for name, short in _OF_SPEECH.items()},
        "models": {name: _model(hosted, totals) for name, hosted in list(service.hosted.items())},
    }


def _sum(totals: Totals, name: str) -> float | None:
    """Return the sum of a metric's series; None where it has none."""
    found = [value for series, value in totals.items() if series[0] == name]
    return sum(found) if found else None


def _requests(totals: Totals) -> dict[str, Any]:
    """Return counts by the status' first digit, and buckets of seconds: [upper bound or null, requests up to it]."""
    statuses: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for (name, labels), value in totals.items():
        if name not in ("deepseek_requests_total", "deepseek_request_seconds_bucket"):
            continue
        route, last = labels
        if not _ANSWERS.search(route):
            continue
        if name == "deepseek_requests_total":
            statuses[f"{last[:1]}xx"] = statuses.get(f"{last[:1]}xx", 0) + value
        else:
            buckets[float(last)] = buckets.get(float(last), 0) + value
    rows = [[None if bound == float("inf") else bound, buckets[bound]] for bound in sorted(buckets)]
    return {"statuses": statuses, "seconds": rows}


def _model(hosted: Hosted, totals: Totals) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": hosted.kind, "version": hosted.version, "state": hosted.state}
    for (name, labels), value in totals.items():
        if not labels or labels[0] != hosted.name:
            continue
        if name in _OF_MODELS:
            told[_OF_MODELS[name]] = value
        elif name == "deepseek_answers_total":
            told[labels[1]] = value
        elif name == "deepseek_tokens_total":
            told[_TOKENS[labels[1]]] = value
    return told
