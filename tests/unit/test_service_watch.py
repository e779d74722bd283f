"""A folder that is watched: new versions are loaded, changed ones loaded anew, gone ones unloaded."""

from __future__ import annotations

import shutil

import pytest

from deepseek.errors import RequestError
from deepseek.serve.service import Service
from deepseek.serve.watch import FolderWatcher
from tests.fake_tensors import mlp_bundle


@pytest.fixture
def watched(tmp_path):
    mlp_bundle(tmp_path / "m" / "1")
    service = Service({"m": tmp_path / "m"}, device="cpu", folder=tmp_path)
    service.start()
    service.verify()
    yield tmp_path, service, FolderWatcher(service, tmp_path)
    service.close()


def test_versions_that_appear_are_loaded_once_they_have_settled(watched):
    folder, service, watcher = watched
    watcher.step()
    mlp_bundle(folder / "m" / "2", seed=2)
    mlp_bundle(folder / "new", seed=3)
    watcher.step()
    assert service.find("m").version == "1"
    watcher.step()
    assert (service.find("m").version, service.find("new").version) == ("2", "1")


def test_a_bundle_that_changed_is_loaded_anew_and_one_that_is_gone_unloaded(watched):
    folder, service, watcher = watched
    before = service.find("m")
    mlp_bundle(folder / "m" / "1", seed=9, hidden_sizes=[16])
    watcher.step()
    watcher.step()
    assert service.find("m") is not before
    assert service.find("m").fingerprint != before.fingerprint
    shutil.rmtree(folder / "m")
    watcher.step()
    with pytest.raises(RequestError):
        service.find("m")


def test_a_damaged_version_leaves_the_old_one_and_is_tried_once(watched):
    folder, service, watcher = watched
    events = []
    service.on_change(lambda change: events.append(change.kind))
    (folder / "m" / "2").mkdir()
    (folder / "m" / "2" / "config.yaml").write_text("format_version: 1\nmodel: {name: Nothing}\n")
    for _ in range(4):
        watcher.step()
    assert service.find("m").version == "1"
    assert events == ["loading", "failed"]


def test_a_link_to_elsewhere_is_passed_over(watched, tmp_path_factory):
    folder, service, watcher = watched
    elsewhere = mlp_bundle(tmp_path_factory.mktemp("elsewhere") / "x")
    (folder / "linked").symlink_to(elsewhere)
    watcher.step()
    watcher.step()
    with pytest.raises(RequestError):
        service.find("linked")
    assert service.find("m").version == "1"


def test_the_thread_starts_and_ends(watched):
    watched[2].start()
    watched[2].close()
