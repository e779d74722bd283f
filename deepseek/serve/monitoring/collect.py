"""What the parts of the server count anyway, read when somebody asks: it costs nothing on the way of a request.

Not here: what is counted as requests go by (see `metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek.serve.monitoring.definitions import Sample
from deepseek.serve.monitoring.process import process_samples

if TYPE_CHECKING:
    from deepseek.serve.hosted import Hosted
    from deepseek.serve.monitoring.watch import Watches
    from deepseek.serve.security.limits import RateLimiter
    from deepseek.serve.service import Service
    from deepseek.serve.speech.session import StreamStats
    from deepseek.serve.state.response_cache import CacheStats
    from deepseek.serve.state.sessions import SessionStats


class Sources(NamedTuple):
    """The parts that are there beside the models."""

    cache: Callable[[], CacheStats] | None = None
    sessions: Callable[[], SessionStats] | None = None
    watches: Watches | None = None
    speech: Callable[[], StreamStats] | None = None
    facts: Callable[[], dict[str, Any]] | None = None
    """Which worker this is, how many there are, how often they were restarted."""
    limiter: RateLimiter | None = None


def samples(service: Service, sources: Sources) -> Iterator[Sample]:
    """Yield everything that is known now."""
    yield "deepseek_ready", (), float(service.ready)
    for status in service.status():
        yield "deepseek_model_ready", (status.name, status.version), float(status.state == "ready")
    for name, hosted in service.hosted.items():
        if hosted.state == "ready":  # asking another's engine would make it before the model is measured
            yield from _engine(name, hosted)
    if sources.cache is not None:
        yield from _cache(sources.cache())
    if sources.sessions is not None:
        yield from _sessions(sources.sessions())
    if sources.speech is not None:
        yield from _speech(sources.speech())
    if sources.watches is not None:
        yield from sources.watches.samples()
    if sources.limiter is not None:
        for limit, count in sources.limiter.refused.items():
            yield "deepseek_limited_total", (limit,), count
    facts = sources.facts() if sources.facts is not None else {}
    yield "deepseek_workers", (), float(facts.get("workers", 1))
    yield "deepseek_worker_restarts_total", (), float(facts.get("restarts", 0))
    for name, value in process_samples():
        yield name, (), value


def _engine(name: str, hosted: Hosted) -> Iterator[Sample]:
    stats = hosted.engine.stats()
    one = (name,)
    yield "deepseek_queue_depth", one, stats.waiting
    yield "deepseek_queue_limit", one, hosted.engine.limits.max_queue
    yield "deepseek_active", one, stats.active
    for outcome in ("finished", "cancelled", "failed", "refused"):
        yield "deepseek_answers_total", (name, outcome), getattr(stats, outcome)
    if hosted.kind == "text":
        yield "deepseek_tokens_total", (name, "prompt"), stats.prompt_tokens
        yield "deepseek_tokens_total", (name, "generated"), stats.generated_tokens
        yield "deepseek_cached_tokens_total", one, stats.cached_tokens
        yield "deepseek_preemptions_total", one, stats.preemptions
        yield "deepseek_pages_used", one, stats.blocks_used
        yield "deepseek_pages_limit", one, stats.blocks_total
        yield "deepseek_step_answers", one, stats.batch_size
    else:
        yield "deepseek_rows_total", one, stats.rows
        yield "deepseek_runs_total", one, stats.runs
        yield "deepseek_queue_seconds_total", one, stats.queue_seconds
        yield "deepseek_run_seconds_total", one, stats.run_seconds


def _cache(stats: CacheStats) -> Iterator[Sample]:
    lookups = {
        "hit": stats.hits - stats.remote_hits,
        "remote_hit": stats.remote_hits,
        "miss": stats.misses,
        "skipped": stats.skipped,
    }
    for result, count in lookups.items():
        yield "deepseek_cache_lookups_total", (result,), count
    yield "deepseek_cache_stored_total", (), stats.stored
    yield "deepseek_cache_refused_total", (), stats.refused
    yield "deepseek_cache_entries", (), stats.entries
    yield "deepseek_cache_bytes", (), stats.nbytes
    yield "deepseek_cache_on", (), float(stats.is_on)
    if stats.is_remote_up is not None:
        yield "deepseek_redis_up", (), float(stats.is_remote_up)


def _speech(stats: StreamStats) -> Iterator[Sample]:
    yield "deepseek_speech_streams", (), stats.open
    yield "deepseek_speech_utterances_total", (), stats.utterances
    yield "deepseek_speech_refused_total", (), stats.refused
    yield "deepseek_speech_audio_seconds_total", (), stats.audio_seconds
    yield "deepseek_speech_busy_seconds_total", (), stats.busy_seconds


def _sessions(stats: SessionStats) -> Iterator[Sample]:
    yield "deepseek_sessions", (), stats.sessions
    yield "deepseek_session_bytes", (), stats.nbytes
    yield "deepseek_session_calls_total", ("load",), stats.loads
    yield "deepseek_session_calls_total", ("append",), stats.appends
    yield "deepseek_session_store_failures_total", (), stats.away
