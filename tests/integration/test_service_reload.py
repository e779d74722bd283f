"""Reloading under load: real threads ask all the time, and nobody is dropped or answered by half a model."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from deepseek.errors import BundleError
from deepseek.serve.service import Service
from tests.fake_tensors import mlp_bundle


@pytest.fixture
def service(tmp_path):
    for version in ("1", "2"):
        mlp_bundle(tmp_path / "m" / version, seed=int(version))
    service = Service({"m": tmp_path / "m"}, device="cpu", folder=tmp_path)
    service.start()
    service.verify()
    yield service, tmp_path
    service.close()


class Clients:
    """Threads that ask all the time and keep what they got, with the version that gave it."""

    def __init__(self, service, count=4):
        self._service = service
        self._stop = threading.Event()
        self._inputs = service.find("m").model.example(2)
        self.answers, self.errors = [], []
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self):
        while not self._stop.is_set():
            try:
                with self._service.use("m") as hosted:
                    done = threading.Event()
                    found = []
                    hosted.engine.submit(self._inputs, lambda answer, d=done, f=found: (f.append(answer), d.set()))
                    assert done.wait(20)
                    if isinstance(found[0], Exception):
                        raise found[0]
                    self.answers.append((hosted.fingerprint, found[0]["logits"]))
            except Exception as error:
                self.errors.append(error)


def test_nobody_is_dropped_while_versions_follow_each_other(service, monkeypatch):
    from deepseek.serve import service as module

    monkeypatch.setattr(module, "_GRACE", 0.0)
    service, folder = service
    wanted = {}
    with Clients(service) as clients:
        for version in ("1", "2", "1", "2"):
            hosted = service.load("m", version=version)
            wanted[hosted.fingerprint] = hosted.model.run(clients._inputs)["logits"]
            time.sleep(0.1)
        mlp_bundle(folder / "m" / "2", seed=22)
        hosted = service.reload("m")
        wanted[hosted.fingerprint] = hosted.model.run(clients._inputs)["logits"]
        (folder / "m" / "3").mkdir()
        (folder / "m" / "3" / "config.yaml").write_text("format_version: 1\nmodel: {name: Nothing}\n")
        with pytest.raises(BundleError):
            service.load("m")
        assert service.rollback("m").version == "1"
        time.sleep(0.1)
    assert clients.errors == []
    seen = {fingerprint for fingerprint, _ in clients.answers}
    assert seen == set(wanted) and len(seen) == 3
    for fingerprint, logits in clients.answers:
        np.testing.assert_allclose(logits, wanted[fingerprint], rtol=1e-4, atol=1e-5)


def test_a_canary_takes_its_share_under_load_and_goes_without_a_trace(service):
    service, _ = service
    with Clients(service) as clients:
        canary = service.load("m", version="1", share=0.3)
        main = service.find("m", "2").fingerprint
        start = len(clients.answers)
        while len(clients.answers) < start + 1500:
            time.sleep(0.01)
        taken = [fingerprint for fingerprint, _ in clients.answers[start : start + 1500]]
        service.unload("m", "1")
        start = len(clients.answers)
        while len(clients.answers) < start + 50:  # who held it last may write that down a little later
            time.sleep(0.01)
    assert clients.errors == []
    share = taken.count(canary.fingerprint) / len(taken)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(taken)) ** 0.5
    assert clients.answers[-1][0] == main


def test_threads_of_replaced_versions_end(service, monkeypatch):
    from deepseek.serve import service as module

    monkeypatch.setattr(module, "_GRACE", 0.0)
    service, _ = service
    before = threading.active_count()
    for _ in range(4):
        service.reload("m")
    for thread in list(service._retiring):
        thread.join(20)
    assert threading.active_count() == before
