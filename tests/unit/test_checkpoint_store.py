"""The checkpoint store: what it writes, what it does when a write fails, and what it says of damaged checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepseek.checkpoint import background, commit, layout, store
from deepseek.checkpoint.manifest import read_manifest
from deepseek.checkpoint.store import CheckpointStore, list_checkpoints, load_checkpoint, load_newest, save_checkpoint
from deepseek.errors import CheckpointError, StorageError
from deepseek.faults import FaultInjector
from deepseek.files import sha256
from tests.system import file_size_limit

HOW = {"in this thread": False, "in a thread": True}


def state_of(step: int, size: int = 64) -> dict[str, Any]:
    weight = torch.arange(size, dtype=torch.float32) + step
    model = {"embed.weight": weight, "head.weight": weight, "norm": torch.ones(3).bfloat16(), "view": weight[1:3]}
    moments = {"embed.weight": {"exp_avg": weight.reshape(-1, 2).t(), "step": torch.tensor(float(step))}}
    return {"step": step, "model": model, "optimizer": {"state": moments}, "betas": (0.9, 0.99)}


def assert_loads(path: Path, step: int) -> None:
    found, wanted = load_checkpoint(path), state_of(step)
    assert found["step"] == step and found["betas"] == (0.9, 0.99)
    for part in ("model", "optimizer"):
        assert_equal(found[part], wanted[part])


def assert_equal(found: Any, wanted: Any) -> None:
    if isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
        return
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert_equal(found[key], wanted[key])


@pytest.fixture(params=HOW.values(), ids=HOW.keys())
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    found = CheckpointStore(tmp_path / "checkpoints", asynchronous=request.param)
    yield found
    found.close()


def test_a_state_is_saved_and_found_again(opened: CheckpointStore) -> None:
    assert opened.newest_good() is None and opened.latest_committed is None
    for step in (1, 2, 3):
        opened.save(step, state_of(step), {"val_loss": 1 / step})
    found = opened.newest_good()
    assert found is not None and found.path.name == "step_00000003" and found.skipped == []
    assert [one.step for one in opened.list()] == [3, 2] and opened.latest_committed == 3
    for one in opened.list():
        assert_loads(one.path, one.step)
    assert found.state["model"]["head.weight"] is found.state["model"]["embed.weight"]
    assert CheckpointStore(opened.folder).latest_committed == 3


def test_the_folder_is_what_the_format_says(opened: CheckpointStore) -> None:
    opened.save(100, state_of(100), {"val_loss": 0.5})
    opened.wait()
    path = opened.folder / "step_00000100"
    assert sorted(os.listdir(path)) == ["manifest.json", "state.json", "state.safetensors"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format_version"] == 2 and manifest["step"] == 100 and manifest["metrics"] == {"val_loss": 0.5}
    assert manifest["aliases"] == {"model/head.weight": "model/embed.weight"}
    assert manifest["versions"]["torch"] == torch.__version__
    for name, record in manifest["files"].items():
        assert record == {"bytes": (path / name).stat().st_size, "sha256": sha256(path / name)}
    tensors = load_file(path / "state.safetensors")  # any program can read the weights
    assert tensors.keys() == manifest["tensors"].keys()
    assert tensors["optimizer/state/embed.weight/exp_avg"].shape == (2, 32)
    for name, record in manifest["tensors"].items():
        assert list(tensors[name].shape) == record["shape"] and record["file"] == "state.safetensors"


def test_what_is_saved_is_the_state_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold_writes(monkeypatch)
    with CheckpointStore(tmp_path) as opened:
        state = state_of(1)
        opened.save(1, state)
        for tensor in (state["model"]["embed.weight"], state["model"]["norm"]):
            tensor.zero_()  # training goes on
        gate.set()
    assert_loads(tmp_path / "step_00000001", 1)


def hold_writes(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let background writes wait for the returned event."""
    gate = threading.Event()

    def wait_and_write(*arguments: Any) -> float:
        assert gate.wait(60)
        return commit.write_checkpoint(*arguments)

    monkeypatch.setattr(background, "write_checkpoint", wait_and_write)
    return gate


def test_a_save_waits_for_the_one_before_it_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = hold_writes(monkeypatch)
    monkeypatch.setattr(store, "_NOTICEABLE", 0.02)
    with CheckpointStore(tmp_path, keep_last=9) as opened:
        opened.save(1, state_of(1))
        opened.check()
        assert opened.latest_committed is None and list_checkpoints(tmp_path) == []
        threading.Timer(0.05, gate.set).start()
        for step in (2, 3):
            opened.save(step, state_of(step))
            opened.wait()
            gate.clear()
            opened.save(step * 10, state_of(step * 10))
            threading.Timer(0.05, gate.set).start()
    for path in list_checkpoints(tmp_path):
        assert_loads(path, int(path.name[5:]))
    assert len(list_checkpoints(tmp_path)) == 5
    assert caplog.text.count("still being written") == 1 and "checkpoint of step 1 was" in caplog.text


def test_the_plan_of_memory_follows_the_state(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep_last=9) as opened:
        opened.prepare(state_of(0))
        for step, size in enumerate((64, 64, 4096, 128, 100_000), 1):
            opened.save(step, state_of(step, size))
            opened.wait()
            assert_equal(load_checkpoint(tmp_path / f"step_0000000{step}")["model"], state_of(step, size)["model"])
        opened.save(6, {"nothing": None})
    assert load_checkpoint(tmp_path / "step_00000006") == {"nothing": None}


def test_several_files_are_written_and_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_SMALLEST_FILE", 4096)
    state = {f"layer.{index}": torch.full((1000,), float(index)) for index in range(20)}
    path = save_checkpoint(tmp_path, 5, state)
    files = sorted(path.glob("state-*-of-*.safetensors"))
    assert len(files) >= 5
    assert_equal(load_checkpoint(path), state)
    files[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{files[1].name} is missing"):
        load_checkpoint(path)


def test_a_checkpoint_at_a_path_of_its_own(opened: CheckpointStore, tmp_path: Path) -> None:
    opened.save(1, state_of(1))
    for step in (2, 3):
        opened.save(step, state_of(step), path=tmp_path / "own" / "epoch_1")
    opened.wait()
    assert_loads(tmp_path / "own" / "epoch_1", 3)
    assert [path.name for path in list_checkpoints(opened.folder)] == ["step_00000001"] and opened.latest_committed == 1


def test_too_little_memory_for_a_copy_means_waiting_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "memory_available", lambda: 1000)
    with CheckpointStore(tmp_path, keep_last=9) as opened:
        opened.prepare(state_of(0))
        for step in (1, 2):
            opened.save(step, state_of(step))
            assert opened.latest_committed == step
            assert_loads(tmp_path / f"step_0000000{step}", step)
        with FaultInjector("checkpoint.write", 1, "disk_full"), pytest.raises(StorageError) as caught:
            opened.save(3, state_of(3))
        assert caught.value.errno == errno.ENOSPC
    assert caplog.text.count("training waits while checkpoints are written") == 1


CODES = {"disk_full": errno.ENOSPC, "io_error": errno.EIO, "read_only": errno.EROFS}


@pytest.mark.parametrize("site", ["checkpoint.write", "checkpoint.fsync", "checkpoint.rename"])
@pytest.mark.parametrize("kind", CODES)
def test_a_failed_write_shows_at_the_next_call_and_costs_one_checkpoint(kind: str, site: str, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep_last=1) as opened:
        opened.save(1, state_of(1))
        opened.wait()
        with FaultInjector(site, 1, kind), pytest.raises(StorageError, match="checkpoint of step 2 was not") as caught:
            opened.save(2, state_of(2))
            while True:
                opened.check()
        assert caught.value.errno == CODES[kind]
        opened.check()  # told once
        assert os.listdir(tmp_path) == ["step_00000001"] and opened.latest_committed == 1
        assert_loads(tmp_path / "step_00000001", 1)
        opened.save(3, state_of(3))
    assert os.listdir(tmp_path) == ["step_00000003"]
    assert_loads(tmp_path / "step_00000003", 3)


def test_a_save_after_a_failed_one_goes_ahead_and_then_tells(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as opened:
        with FaultInjector("checkpoint.fsync", 2, "exception"):
            opened.save(1, state_of(1))
            with pytest.raises(CheckpointError, match="step 1 was not written") as caught:
                opened.save(2, state_of(2))
        assert caught.value.found == "InjectedFault"
        opened.wait()
        assert [one.step for one in opened.list()] == [2]


def test_closing_tells_too(tmp_path: Path) -> None:
    opened = CheckpointStore(tmp_path)
    with FaultInjector("checkpoint.write", 2, "disk_full"), pytest.raises(StorageError):
        opened.save(1, state_of(1))
        opened.close()
    assert os.listdir(tmp_path) == []


def test_a_copy_that_fails_leaves_the_store_as_it_was(opened: CheckpointStore) -> None:
    opened.save(1, state_of(1))
    with FaultInjector("checkpoint.copy", 1, "out_of_memory"), pytest.raises(RuntimeError, match="can't allocate"):
        opened.save(2, state_of(2))
    opened.save(3, state_of(3))
    opened.wait()
    assert [one.step for one in opened.list()] == [3, 1]


def test_a_limit_of_file_sizes_acts_like_a_full_disk(opened: CheckpointStore) -> None:
    opened.save(1, state_of(1))
    opened.wait()
    with file_size_limit(1 << 20), pytest.raises(StorageError) as caught:
        opened.save(2, state_of(2, 1 << 20))
        opened.wait()
    assert caught.value.errno == errno.EFBIG and os.listdir(opened.folder) == ["step_00000001"]


@pytest.mark.parametrize(
    "tensor", [torch.empty(2, device="meta"), torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128)]
)
def test_a_tensor_that_cannot_be_held_is_named_before_anything_is_written(tensor: Tensor, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as opened, pytest.raises(CheckpointError, match="tensor 'model/odd'"):
        opened.save(1, {"model": {"odd": tensor}})
    assert os.listdir(tmp_path) == []


def test_everything_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def traced_sync(handle: int) -> None:
        calls.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def traced_rename(old: Path, new: Path) -> None:
        calls.append(f"rename {Path(new).name}")
        rename(old, new)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc: what a handle stands for is not known")
    monkeypatch.setattr(os, "fsync", traced_sync)
    monkeypatch.setattr(os, "rename", traced_rename)
    with CheckpointStore(tmp_path / "all") as opened:
        opened.save(7, state_of(7))
    renamed = calls.index("rename step_00000007")
    before, after = calls[:renamed], calls[renamed + 1 :]
    for name in ("state.safetensors", "state.json", "manifest.json", f"step_00000007.tmp-{os.getpid()}"):
        assert f"sync {name}" in before
    assert before.index("sync manifest.json") > before.index("sync state.safetensors")
    assert after == ["sync all"]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def damage_tensor(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / "state.safetensors"
        flip(file, next(slot.begin for slot in layout.read_slots(file)[1] if slot.spec.name == name))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a tensor": (
        damage_tensor("optimizer/state/embed.weight/exp_avg"),
        "state.safetensors is damaged: its checksum differs from tensor 'optimizer/state/embed.weight/exp_avg' on",
    ),
    "the first tensor": (damage_tensor("model/embed.weight"), "from tensor 'model/embed.weight' on"),
    "a bit of the header": (lambda path: flip(path / "state.safetensors", 40), "state.safetensors"),
    "a bit of the values": (lambda path: flip(path / "state.json", 12), "state.json is damaged"),
    "a bit of the manifest": (lambda path: flip(path / "manifest.json", 40), "manifest"),
    "a cut": (lambda path: os.truncate(path / "state.safetensors", 900), "state.safetensors is damaged: cut short"),
    "more bytes": (lambda path: os.truncate(path / "state.safetensors", 9000), "state.safetensors is damaged: 9000"),
    "0 bytes": (lambda path: os.truncate(path / "state.safetensors", 0), "found 0 bytes"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "no readable manifest"),
    "an empty manifest": (lambda path: os.truncate(path / "manifest.json", 0), "no readable manifest"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 300), "no readable manifest"),
    "a manifest of 10 GB": (lambda path: os.truncate(path / "manifest.json", 10 << 30), "too large"),
    "no values": (lambda path: (path / "state.json").unlink(), "state.json is missing"),
    "no tensors": (lambda path: (path / "state.safetensors").unlink(), "state.safetensors is missing"),
    "another version": (lambda path: (path / "manifest.json").write_text('{"format_version": 3}'), "version 3"),
    "a manifest that is a list": (lambda path: (path / "manifest.json").write_text("[]"), "no readable manifest"),
    "an empty folder": (lambda path: [file.unlink() for file in path.iterdir()], "no readable manifest"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_skipped_and_the_reason_said(
    damage: Callable[[Path], Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointStore(tmp_path) as opened:
        for step in (1, 2):
            opened.save(step, state_of(step))
            opened.wait()
        damage(tmp_path / "step_00000002")
        found = opened.newest_good()
        assert found is not None and found.path.name == "step_00000001" and found.state["step"] == 1
        assert [(path.name, reason in why) for path, why in found.skipped] == [("step_00000002", True)], found.skipped
        assert f"skipped checkpoint step_00000002: {found.skipped[0][1]}" in caplog.text
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "step_00000002")
        assert opened.best() is None and len(opened.list()) == 2


def test_a_manifest_rewritten_by_hand_leads_to_no_other_file(tmp_path: Path) -> None:
    from deepseek.checkpoint import manifest as module

    path = save_checkpoint(tmp_path, 1, state_of(1))
    for change in (
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"state.safetensors": {"bytes": float("nan"), "sha256": ""}}},
        {"tensors": {"a": {"file": "state.safetensors", "dtype": "F32", "shape": [-1], "check": ""}}},
        {"tensors": {}},
        {"aliases": {"model/head.weight": "none"}},
        {"aliases": 3},
        {"tensors": {"a": None}},
        {"step": None},
        {"files": {}},
    ):
        body = {**json.loads((path / "manifest.json").read_text()), **change}
        body.pop("checksum")
        body["checksum"] = module._checksum(body)
        damaged = tmp_path / "step_00000002"
        shutil.copytree(path, damaged, dirs_exist_ok=True)
        (damaged / "manifest.json").write_text(json.dumps(body))
        with pytest.raises(CheckpointError):
            load_checkpoint(damaged)
    assert read_manifest(path).step == 1


def test_version_1_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "step_00000009"
    path.mkdir()
    save_file({"model/w": torch.ones(2)}, path / "state.safetensors")
    (path / "state.json").write_text(json.dumps({"step": 9, "model": {"w": {"$tensor": "model/w"}}}))
    sums = {name: sha256(path / name) for name in ("state.safetensors", "state.json")}
    (path / "manifest.json").write_text(json.dumps({"format_version": 1, "step": 9, "sha256": sums}))
    newest = load_newest(tmp_path)
    assert newest is not None and newest[1]["step"] == 9 and newest[1]["model"]["w"].tolist() == [1.0, 1.0]
    flip(path / "state.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        load_checkpoint(path)


def test_loaded_tensors_can_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state_of(1))
    load_checkpoint(path)["model"]["embed.weight"].zero_()
    assert_loads(path, 1)


def test_what_dead_writers_left_is_removed_at_the_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_of(1))
    (tmp_path / "step_00000002.tmp-999999999").mkdir()
    (tmp_path / "step_00000002.tmp-999999999" / "state.safetensors").write_bytes(b"half")
    CheckpointStore(tmp_path).close()
    assert os.listdir(tmp_path) == ["step_00000001"]


def test_a_step_saved_again_is_replaced(opened: CheckpointStore) -> None:
    opened.save(4, {"value": 1})
    opened.save(4, {"value": 2})
    opened.wait()
    assert load_checkpoint(opened.folder / "step_00000004") == {"value": 2}
    opened.save(123_456_789, {"value": 3})
    opened.wait()
    assert [one.step for one in opened.list()] == [123_456_789, 4]
