"""Several workers look like one: sums, rates and what clients order hold for all, through kills too."""

from __future__ import annotations

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepseek.serve.options import Safety
from deepseek.serve.security.keys import new_key
from tests.fake_tensors import mlp_bundle
from tests.supervised import supervised

BODY = {"model": "m", "prompt": "x", "max_tokens": 2}
RATE = 30


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    mlp_bundle(folder / "later")
    (folder / "torn").mkdir()
    (folder / "torn" / "bundle.json").write_text("{")
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    slow, line = new_key("slow", requests_per_minute=RATE)
    lines = [line, f"fast: sha256:{hashlib.sha256(b'k-1').hexdigest()}"]
    keys.write_text("\n".join(lines))
    safety = Safety(api_keys=keys)
    with supervised(safety=safety, folder=folder, allow_admin=True) as running:
        running.slow = {"authorization": f"Bearer {slow}"}
        yield running


def scraped(response):
    families = text_string_to_metric_families(response.text)
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


ANSWERED = ("deepseek_requests_total", ("route", "/v1/completions"), ("status", "200"))


def test_every_worker_tells_the_sum_of_all_and_a_kill_takes_nothing_from_it(pair):
    with ThreadPoolExecutor(4) as askers:
        answers = list(askers.map(lambda _: pair.fresh("POST", "/v1/completions", json=BODY), range(24)))
    assert [answer.status_code for answer in answers] == [200] * 24
    pair.wait_until(lambda: scraped(pair.fresh("GET", "/metrics"))[ANSWERED] == 24)
    told = scraped(pair.fresh("GET", "/metrics"))
    assert told[("deepseek_answers_total", ("model", "m"), ("outcome", "finished"))] >= 24  # golden samples too
    assert {key[1] for key in told if key[0] == "process_threads"} == {("worker", "0"), ("worker", "1")}
    restarts = pair.supervisor.restarts
    os.kill(pair.supervisor.pids()[0], signal.SIGKILL)
    seen = []
    while not seen or pair.supervisor.restarts == restarts or not pair.supervisor.all_ready:
        seen.append(scraped(pair.fresh("GET", "/metrics"))[ANSWERED])
    assert seen == [24] * len(seen)
    drawn = pair.fresh("GET", "/page/numbers").json()
    assert drawn["requests"]["statuses"]["2xx"] == 24 and drawn["process"] == os.getpid()
    assert drawn["models"]["m"]["kind"] == "text"


def test_a_rate_holds_for_all_workers_together(pair):
    burst = RATE // 6

    def ask(_):
        return pair.fresh("POST", "/v1/completions", json=BODY, headers=pair.slow).status_code

    with ThreadPoolExecutor(4) as askers:
        codes = list(askers.map(ask, range(burst * 4)))
    assert set(codes) == {200, 429} and codes.count(200) <= burst + 2  # one comes back every other second
    counted = ("deepseek_limited_total", ("limit", "rate"))
    pair.wait_until(lambda: scraped(pair.fresh("GET", "/metrics"))[counted] == codes.count(429))


def test_what_a_client_orders_is_done_by_all_and_by_those_who_come_later(pair):
    def states():
        answers = pair.of_each("GET", "/v2/models/later/ready").values()
        return sorted(answer.status_code for answer in answers)

    change = "/v2/repository/models/{}/{}".format
    assert states() == [404, 404]
    assert pair.fresh("POST", change("later", "load")).status_code == 200
    assert states() == [200, 200]
    refused = pair.fresh("POST", change("torn", "load"))
    assert refused.status_code in (400, 404) and "workers" not in refused.text  # tried by one, and the others untouched
    assert pair.fresh("POST", change("nobody", "unload")).status_code == 404
    restarts = pair.supervisor.restarts
    os.kill(pair.supervisor.pids()[1], signal.SIGKILL)
    pair.wait_until(lambda: pair.supervisor.restarts > restarts and pair.supervisor.all_ready)
    assert states() == [200, 200]
    with ThreadPoolExecutor(2) as askers:  # two at once come one after the other
        both = list(askers.map(lambda verb: pair.fresh("POST", change("later", verb)).status_code, ("load", "unload")))
    assert both == [200, 200] and states() in ([200, 200], [503, 503], [404, 404])
    assert pair.fresh("POST", change("later", "unload"), json={"parameters": {"share": 0.5}}).status_code == 400
