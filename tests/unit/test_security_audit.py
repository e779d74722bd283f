"""The audit log: whole lines, rotation, and a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import stat
import time

import pytest

from deepseek.errors import ConfigError
from deepseek.serve.security import audit
from deepseek.serve.security.audit import AuditLog


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_one_line_of_json_for_its_owner_only(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for number in range(500):
        log.write({"request_id": f"r{number}", "key": "ann\n\ud800", "status": 200})
    log.close()
    records = lines_of(path)
    assert [record["request_id"] for record in records] == [f"r{number}" for number in range(500)]
    assert records[0]["key"] == "ann\n\ud800" and records[0]["time"] > 1e9
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_goes_on_where_it_ended(tmp_path):
    for name in ("first", "second"):
        log = AuditLog(tmp_path / "audit.jsonl")
        log.write({"request_id": name})
        log.close()
    assert [record["request_id"] for record in lines_of(tmp_path / "audit.jsonl")] == ["first", "second"]


def test_rotation_keeps_whole_lines_in_order_and_a_bounded_number_of_files(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, max_bytes=4096, keep=2)
    for number in range(400):
        log.write({"request_id": number, "filler": "x" * 100})
        if number % 20 == 19:
            while not log._lines.empty():
                time.sleep(0.005)
    log.close()
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert [file.name for file in files] == ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]
    numbers = [record["request_id"] for file in files for record in lines_of(file)]
    assert numbers == list(range(numbers[0], 400))


def test_a_full_disk_drops_lines_whole_tells_it_once_and_heals(tmp_path, monkeypatch, caplog):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write({"request_id": "before"})
    while log._size == 0:
        time.sleep(0.005)
    real, room = os.write, [10]

    def full(file: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, bytes(data)[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(audit.os, "write", full)
    for number in range(3):
        log.write({"request_id": f"lost {number}"})
    while log.dropped < 3:
        time.sleep(0.005)
    monkeypatch.setattr(audit.os, "write", real)
    log.write({"request_id": "after"})
    log.close()
    assert [record["request_id"] for record in lines_of(path)] == ["before", "after"]
    assert log.dropped == 3
    assert caplog.text.count("can't be written") == 1


def test_a_disk_that_stands_still_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "_WAITING", 10)
    log = AuditLog(tmp_path / "audit.jsonl")
    monkeypatch.setattr(log, "_append", lambda lines: None)
    log.close()  # the thread is gone: nothing is taken away any more
    for number in range(100):
        log.write({"request_id": number})
    assert log.dropped == 90


def test_prompts_are_kept_only_when_asked_for_and_not_without_end(tmp_path):
    for name, log_prompts in (("silent", False), ("open", True)):
        log = AuditLog(tmp_path / name, log_prompts=log_prompts)
        log.write({"request_id": "r", "prompt": ["secret", "x" * 1_000_000], "status": 200})
        log.close()
    (silent,), (told,) = lines_of(tmp_path / "silent"), lines_of(tmp_path / "open")
    assert "prompt" not in silent and "secret" not in (tmp_path / "silent").read_text()
    assert told["prompt"].startswith("['secret', 'xxx") and len(told["prompt"]) == 65_536


def test_a_place_that_can_not_be_written_is_told_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="audit log"):
        AuditLog(tmp_path / "no" / "such" / "folder.jsonl")
