"""Names, versions, shares and states of the models of one server."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from deepseek.errors import BundleError, RequestError
from deepseek.serve.service import Service
from deepseek.serve.versions import Change
from tests.fake_serving import FakeModel
from tests.fake_tensors import FakeTensorModel, mlp_bundle

X = {"x": np.ones((1, 2), np.float32)}


@pytest.fixture
def folder(tmp_path):
    for version in ("1", "2"):
        mlp_bundle(tmp_path / "m" / version, seed=int(version))
    return tmp_path


def served(folder):
    service = Service({"m": folder / "m"}, device="cpu", folder=folder)
    service.start()
    service.verify()
    return service


def status_of(call):
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value.status


def test_models_in_memory_are_of_their_kind_and_answer_once_they_are_checked():
    service = Service({"t": FakeTensorModel(1.0), "l": FakeModel()})
    assert {name: hosted.kind for name, hosted in service.hosted.items()} == {"t": "tensor", "l": "text"}
    assert status_of(lambda: service.find("t")) == 503
    assert not service.ready
    service.start()
    service.verify()
    assert service.ready
    assert service.states() == {"t": "ready", "l": "ready"}
    found = []
    done = threading.Event()
    with service.use("t") as hosted:
        hosted.engine.submit(X, lambda answer: (found.append(answer), done.set()))
    assert done.wait(10)
    assert found[0]["y"].tolist() == [[2.0, 2.0]]
    service.close()
    assert status_of(lambda: service.find("t")) == 503


def test_a_name_is_needed_where_there_are_several_and_must_be_known():
    service = Service({"a": FakeTensorModel(), "b": FakeTensorModel()})
    service.verify()
    assert status_of(lambda: service.find(None)) == 400
    assert status_of(lambda: service.find("c")) == 404
    assert status_of(lambda: service.find("a", "2")) == 404
    assert service.find("a", "1").name == "a"
    assert Service({}).hosted == {}


def test_one_that_fails_gets_503_and_the_others_serve():
    service = Service({"bad": FakeTensorModel(golden=False), "good": FakeTensorModel()})
    service.start()
    service.verify()
    assert service.ready
    assert status_of(lambda: service.find("bad")) == 503
    assert service.find("good").state == "ready"
    service.close()


def test_if_all_fail_the_first_error_is_raised(tmp_path):
    with pytest.raises(BundleError, match="golden"):
        Service({"bad": FakeTensorModel(golden=False)}).verify()
    with pytest.raises(BundleError):
        Service({"none": tmp_path / "none"}).verify()


def test_a_bundle_that_crashes_while_it_is_opened_is_alone_with_that(folder, monkeypatch):
    from deepseek.serve import service as module

    real = module.open_model

    def opened(path, device, limits):
        if path.parent.name == "crash":
            raise SystemExit("the model's file says goodbye")
        return real(path, device, limits)

    monkeypatch.setattr(module, "open_model", opened)
    mlp_bundle(folder / "crash" / "1")
    service = Service({"crash": folder / "crash", "m": folder / "m"}, device="cpu")
    service.start()
    service.verify()
    assert service.ready
    assert service.states() == {"crash": "failed", "m": "ready"}
    assert status_of(lambda: service.find("crash")) == 503
    states = {entry["name"]: entry["state"] for entry in service.index()}
    assert states == {"crash": "UNAVAILABLE", "m": "READY"}
    service.close()


def test_a_bundle_with_a_link_out_of_it_fails_alone_and_the_server_is_ready(folder):
    mlp_bundle(folder / "linked")
    (folder / "linked" / "notes").symlink_to(folder.parent)
    service = Service({"linked": folder / "linked", "good": FakeTensorModel()})
    service.start()
    service.verify()
    assert service.ready and service.states() == {"linked": "failed", "good": "ready"}
    assert status_of(lambda: service.find("linked")) == 503
    (line,) = [line for line in service.index() if line["name"] == "linked"]
    assert line["reason"] == "linked/notes is a link that leads out of linked"
    service.close()


def test_the_highest_version_serves_and_others_come_and_go(folder):
    service = served(folder)
    events = []
    service.on_change(events.append)
    assert service.find("m").version == "2"
    assert status_of(lambda: service.find("m", "1")) == 404
    service.load("m", version="1")
    assert service.find("m").version == "1"
    assert service.rollback("m").version == "2"
    assert service.find(None).version == "2"
    service.unload("m")
    assert status_of(lambda: service.find("m")) == 404
    service.load("m")
    assert service.find("m").version == "2"
    kinds = [(event.kind, event.version) for event in events]
    loaded = [("loading", "1"), ("loaded", "1"), ("loading", "2"), ("loaded", "2"), ("unloaded", "2")]
    assert kinds == [*loaded, ("loading", "2"), ("loaded", "2")]
    assert events[0] == Change("loading", "m", "1")
    service.close()


def test_each_phase_of_loading_is_timed_and_versions_differ_by_fingerprint(folder):
    service = served(folder)
    first = service.find("m")
    assert {"open", "runtime", "golden", "warm_up"} <= set(first.timings)
    assert service.load("m", version="1").fingerprint != first.fingerprint
    (line,) = [line for line in service.status() if line.state == "ready"]
    assert (line.name, line.version, line.kind, line.share) == ("m", "1", "tensor", 1.0)
    service.close()


def test_what_can_not_be_loaded_changes_nothing(folder):
    service = served(folder)
    (folder / "m" / "3").mkdir()
    (folder / "m" / "3" / "config.yaml").write_text("format_version: 99\n")
    before = service.find("m")
    with pytest.raises(BundleError):
        service.load("m")
    assert service.find("m") is before
    assert [entry["state"] for entry in service.index()] == ["READY", "UNAVAILABLE"]
    assert status_of(lambda: service.load("m", version="7")) == 404
    assert status_of(lambda: service.load("unknown")) == 404
    assert status_of(lambda: service.unload("unknown")) == 404
    assert status_of(lambda: service.rollback("m")) == 409
    service.close()


def test_a_model_of_the_folder_is_found_by_its_name(folder):
    mlp_bundle(folder / "late", seed=5)
    service = served(folder)
    assert service.load("late").version == "1"
    with pytest.raises(RequestError):
        service.load("../m")
    service.close()


def test_shares_decide_who_answers_and_are_met(folder):
    service = served(folder)
    service.load("m", version="1", share=0.2)
    service._random.seed(7)
    picked = Counter()
    for _ in range(3000):
        with service.use("m") as hosted:
            picked[hosted.version] += 1
    assert chisquare([picked["1"], picked["2"]], [600, 2400]).pvalue > 0.001
    assert service.hosted["m"].version == "2"
    assert service.find("m", "1").version == "1"
    service.set_weight("m", "1", 0.5)
    assert {line.version: line.share for line in service.status()} == {"1": 0.5, "2": 0.5}
    service.unload("m", "2")
    assert {service.find("m").version for _ in range(20)} == {"1"}
    for share in (-0.1, 1.1, float("nan")):
        assert status_of(lambda share=share: service.set_weight("m", "1", share)) == 400
    assert status_of(lambda: service.set_weight("m", "2", 0.5)) == 404
    assert status_of(lambda: service.set_weight("m", "1", 0.5)) == 400
    service.close()


def test_a_version_goes_only_when_the_last_who_holds_it_lets_go(folder, monkeypatch):
    from deepseek.serve import service as module

    monkeypatch.setattr(module, "_GRACE", 0.0)
    service = served(folder)
    lease = service.use("m")
    with lease as old:
        service.load("m", version="1")
        assert service.find("m").version == "1"
        inputs = old.model.example(2)
        found = []
        done = threading.Event()
        old.engine.submit(inputs, lambda answer: (found.append(answer), done.set()))
        assert done.wait(10)
        np.testing.assert_allclose(found[0]["logits"], old.model.run(inputs)["logits"], rtol=1e-5, atol=1e-6)
        assert old.leases == 1
    for thread in list(service._retiring):
        thread.join(10)
    assert old.state == "unloaded"
    with pytest.raises(RequestError):
        old.engine.submit(inputs, found.append)
    service.close()
