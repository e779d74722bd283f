"""Metrics from one table: what is scraped after real traffic is what the dashboard draws and the alerts watch."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deepseek.errors import RequestError
from deepseek.serve import Service
from deepseek.serve.monitoring import panels
from deepseek.serve.monitoring.alerts import AlertLimits, alerts, alerts_yaml
from deepseek.serve.monitoring.collect import Sources
from deepseek.serve.monitoring.dashboard import build_dashboard, dashboard_json
from deepseek.serve.monitoring.definitions import BY_NAME, DEFINITIONS, SCRAPED
from deepseek.serve.monitoring.metrics import PlainMetrics, PrometheusMetrics, build_metrics
from deepseek.serve.monitoring.process import process_samples
from deepseek.serve.monitoring.profile import make_profile
from deepseek.serve.monitoring.promql import Selected, grouped_labels, selectors
from deepseek.serve.monitoring.watch import Watches
from deepseek.serve.rest import app
from deepseek.serve.security.limits import RateLimiter
from deepseek.serve.speech.session import Streams
from deepseek.serve.state.options import StateOptions, build_state
from deepseek.serve.text.events import Done
from tests.fake_serving import FakeModel
from tests.fake_tensor import LoneInput
from tests.rest_client import client_of

X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


class UpCache:
    """A stand-in for Redis in the cache's counters: it is there."""

    def __init__(self, cache):
        self._cache = cache

    def __call__(self):
        return self._cache.stats()._replace(is_remote_up=True)


@pytest.fixture(scope="module")
def scraped():
    """Families by name, after requests of every kind to a server with everything switched on."""
    state, watches, made = build_state(StateOptions(cache_bytes=64 << 20)), Watches(), []

    def metrics_of(service, *others, **more):
        facts = {"workers": 2, "restarts": 1}
        streams, limiter = Streams(service), RateLimiter(60)
        sources = Sources(UpCache(state.cache), state.sessions.stats, watches, streams.stats, lambda: facts, limiter)
        made.append((service, PrometheusMetrics(service, sources)))
        return made[0][1]

    patch = pytest.MonkeyPatch()
    patch.setattr(app, "build_metrics", metrics_of)
    models = {"say": FakeModel("Hello. ", end=True), "lone": LoneInput()}
    with patch.context(), client_of(models, cache=state.cache, sessions=state.sessions) as client:
        for _ in range(3):
            client.post("/v2/models/lone/infer", json={"inputs": [X]})
            client.post("/v1/completions", json={"model": "say", "prompt": "x", "temperature": 0})
        chat = {"model": "say", "messages": [{"role": "user", "content": "hi"}], "session_id": "s"}
        client.post("/v1/chat/completions", json=chat)
        client.get("/nowhere")
        hosted = made[0][0].find("lone")
        values = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
        hosted.profile = make_profile([{"x": values}], [{"y": values[:, :2]}])
        for row in values[:1200].reshape(-1, 1, 4):
            watches.see(hosted, None, {"x": row}, {"y": row[:, :2]})
            watches.flush()
        text = client.get("/metrics").text
    patch.undo()
    watches.close()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.fixture(scope="module")
def series(scraped):
    """Labels of each series' samples, by the series' name."""
    found = {}
    for family in scraped.values():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, []).append(sample.labels)
    return found


def queries():
    board = build_dashboard()
    drawn = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    rules = [rule["expr"] for group in yaml.safe_load(alerts_yaml())["groups"] for rule in group["rules"]]
    assert len(drawn) > 40 and len(rules) == len(alerts())
    return drawn + rules


def test_every_name_and_label_of_every_query_is_scraped(series):
    for query in queries():
        read = selectors(query)
        assert read or "time()" in query, query
        for one in read:
            assert one.name in series, f"{one.name} of {query} is not scraped"
            for labels in series[one.name]:
                assert set(one.labels) <= set(labels), query
        labels = grouped_labels(query)
        assert all(labels <= {*series[one.name][0]} for one in read), query


def test_everything_that_is_scraped_is_defined_and_all_that_is_defined_is_scraped(scraped, series):
    assert set(series) == set(SCRAPED)
    for definition in DEFINITIONS:
        family = scraped[definition.name.removesuffix("_total") if definition.kind == "counter" else definition.name]
        assert (family.type, family.documentation) == (definition.kind, definition.help)
        for name in definition.scraped:
            for labels in series[name]:
                assert tuple(sorted({*labels} - {"le"})) == tuple(sorted(definition.labels))


def test_every_metric_is_drawn():
    board = build_dashboard()
    drawn = {one.name for query in queries() for one in selectors(query)}
    for definition in DEFINITIONS:
        assert drawn & set(definition.scraped), f"{definition.name} is on no panel"
    for panel in board["panels"]:
        assert panel["type"] == "row" or panel["description"]


def test_no_two_panels_overlap_and_ids_are_different():
    panels_of_board = json.loads(dashboard_json())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels_of_board)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and all(0 <= x < 24 for x, _ in cells)
    assert len({panel["id"] for panel in panels_of_board}) == len(panels_of_board)


def test_names_follow_the_conventions_of_prometheus():
    assert len(BY_NAME) == len(DEFINITIONS)
    for one in DEFINITIONS:
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert one.unit != "seconds" or "seconds" in one.name
        assert one.unit != "bytes" or one.name.endswith("_bytes")


def test_the_counts_are_those_of_the_traffic(scraped):
    def value(family, **labels):
        return next(
            sample.value
            for sample in scraped[family].samples
            if sample.labels == labels and not sample.name.endswith("_created")
        )

    assert value("deepseek_requests", route="/v2/models/{name}/infer", status="200") == 3
    assert value("deepseek_requests", route="other", status="404") == 1
    assert value("deepseek_cache_lookups", result="hit") == 2
    assert value("deepseek_cache_lookups", result="miss") == 4
    assert value("deepseek_rows", model="lone") == 2
    assert value("deepseek_session_calls", kind="append") == 1
    assert value("deepseek_watched", model="lone") == 1200
    assert value("deepseek_drift_alarms", model="lone") == 0
    assert value("deepseek_worker_restarts") == 1
    assert value("process_threads") >= 2
    assert value("process_resident_memory_bytes") > 10 << 20


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("up", [Selected("up", ())]),
        ('sum by (a, b) (rate(x_total{status=~"5..", r!="}"}[5m])) / on (a) y', ["x_total", "y"]),
        ("topk(5, max without (le) (a:b)) > 1e-3 and c offset 5m unless d", ["a:b", "c", "d"]),
        ("histogram_quantile(0.99, sum(rate(h_bucket[$__rate_interval])) by (le))", ["h_bucket"]),
        ("time() - 1.5 * vector(3) # comment", []),
        ("a{x='1'} * ignoring (x) group_left (y) b == bool 0", ["a", "b"]),
    ],
)
def test_queries_are_read(query, found):
    read = selectors(query)
    assert [one.name for one in read] == [one if isinstance(one, str) else one.name for one in found]


def test_labels_of_queries_are_read():
    assert selectors('x_total{status=~"5..", r!="}"}') == [Selected("x_total", ("status", "r"))]
    assert grouped_labels("sum by (le, a) (x) / on (b) y") == {"a", "b"}
    for wrong in ("sum(a", "a}", "a{b='1'", "a § b", 'a{b="}'):
        with pytest.raises(ValueError, match="PromQL|bracket"):
            selectors(wrong)


def test_a_panel_of_an_unknown_metric_or_label_can_not_be_made():
    with pytest.raises(KeyError):
        panels.rate("deepseek_request_total")
    with pytest.raises(ValueError, match="no label model"):
        panels.rate("deepseek_requests_total", "model")
    with pytest.raises(ValueError, match="no counter"):
        panels.rate("deepseek_active")


def test_alerts_take_other_limits():
    conditions = {one.name: one.condition for one in alerts(AlertLimits(p99_seconds=0.25, error_share=0.5))}
    assert conditions["DeepseekSlow"].endswith("> 0.25") and conditions["DeepseekErrors"].endswith("> 0.5")


def test_a_model_that_is_not_ready_is_told_and_its_engine_not_asked():
    service = Service({"say": FakeModel()})
    text = build_metrics(service).render()[0].decode()
    assert 'deepseek_model_ready{model="say",version="1"} 0.0' in text
    assert "deepseek_queue_depth" not in text and service.hosted["say"]._engine is None
    with pytest.raises(RequestError, match="prometheus-client"):
        PlainMetrics(service).render()


def test_times_of_answers_add_up():
    metrics = PrometheusMetrics(Service({"say": FakeModel()}))
    metrics.answer("say", Done(0, "stop", 5, 0.5, 2.5))
    metrics.answer("say", Done(0, "stop", 1, 0.25, 0.25))
    metrics.answer("say", Done(0, "stop", 0, 0.0, 0.1))
    lines = dict(line.rsplit(" ", 1) for line in metrics.render()[0].decode().splitlines() if line[0] != "#")
    assert float(lines['deepseek_time_to_first_token_seconds_sum{model="say"}']) == 0.75
    assert float(lines['deepseek_time_per_token_seconds_sum{model="say"}']) == 0.5
    assert float(lines['deepseek_time_per_token_seconds_count{model="say"}']) == 1


def test_the_process_tells_what_the_system_tells():
    psutil = pytest.importorskip("psutil")
    ours, theirs = dict(process_samples()), psutil.Process()
    assert ours["process_threads"] == theirs.num_threads() >= threading.active_count()
    assert abs(ours["process_open_fds"] - theirs.num_fds()) <= 2
    assert math.isclose(ours["process_resident_memory_bytes"], theirs.memory_info().rss, rel_tol=0.1)
    assert abs(ours["process_start_time_seconds"] - theirs.create_time()) < 3600
