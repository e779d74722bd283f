"""What the dashboard draws, as one small JSON object: counts since the start, and what is so now.

The page asks again and again and takes differences, so nothing is kept here and no request pays for it. Requests and
their seconds come from the histogram that `/metrics` has; the page's own requests are left out.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

from deepseek.errors import RequestError
from deepseek.serve.monitoring.process import process_samples

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.monitoring.metrics import Metrics
    from deepseek.serve.service import Service
    from deepseek.serve.speech.session import StreamStats

_ASKED = re.compile(r"^(deepseek_requests_total|deepseek_request_seconds_bucket)\{(.*)\} (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ANSWERS = re.compile(r"(?:completions|embeddings|:predict|/infer|/generate(?:_stream)?|Infer|Generate)$")
"""Routes that a model answers."""
_COUNTS = ("waiting", "active", "finished", "failed", "refused", "cancelled")


def numbers(service: Service, metrics: Metrics, speech: StreamStats) -> dict[str, Any]:
    """Return the numbers of now; `time` is in seconds of a clock that only goes forward."""
    try:
        text = metrics.render()[0].decode("utf-8")
    except RequestError:  # without prometheus-client requests are not counted
        text = ""
    return {
        "time": time.monotonic(),
        "process": os.getpid(),
        "memory_bytes": dict(process_samples()).get("process_resident_memory_bytes"),
        "requests": _requests(text),
        "speech": speech._asdict(),
        "models": {name: _model(hosted) for name, hosted in list(service.hosted.items())},
    }


def _requests(text: str) -> dict[str, Any]:
    """Return counts by the status' first digit, and buckets of seconds: [upper bound or null, requests up to it]."""
    statuses: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for metric, written, value in _ASKED.findall(text):
        labels = dict(_LABEL.findall(written))
        if not _ANSWERS.search(labels.get("route", "")):
            continue
        if metric == "deepseek_requests_total":
            kind = f"{labels.get('status', '?')[:1]}xx"
            statuses[kind] = statuses.get(kind, 0) + float(value)
        else:
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0) + float(value)
    rows = [[None if bound == float("inf") else bound, buckets[bound]] for bound in sorted(buckets)]
    return {"statuses": statuses, "seconds": rows}


def _model(hosted: Hosted) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": hosted.kind, "version": hosted.version, "state": hosted.state}
    if hosted.state != "ready":
        return told
    stats = hosted.engine.stats()
    told |= {name: getattr(stats, name) for name in _COUNTS}
    if hosted.kind == "text":
        told |= {"tokens": stats.generated_tokens, "prompt_tokens": stats.prompt_tokens, "batch": stats.batch_size}
        return told | {"blocks_used": stats.blocks_used, "blocks_total": stats.blocks_total}
    return told | {"rows": stats.rows, "runs": stats.runs}
