"""Facts about the machine: devices by name, cores within the affinity, memory within the container's limit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.hardware import environment, memory_available, physical_cores, resolve_device, use_physical_cores


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu") == resolve_device(torch.device("cpu"))
    assert resolve_device().type in {"cpu", "cuda", "mps"}
    for name, words in (("gpu", "did you mean 'cpu'"), ("cuda:77", "no device 'cuda:77'"), ("", "unknown device")):
        with pytest.raises(ConfigError, match=words):
            resolve_device(name)


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    threads = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        assert use_physical_cores() == threads
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert use_physical_cores() == physical_cores() == torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)


def fake_files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    def read_text(path: Path, *args: object, **kwargs: object) -> str:
        if str(path) not in contents:
            raise FileNotFoundError(path)
        return contents[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)


MEMINFO = "MemTotal: 64000 kB\nMemFree: 1000 kB\nMemAvailable: 40000 kB\n"
GROUP = "/sys/fs/cgroup/memory"


@pytest.mark.skipif(sys.platform == "win32", reason="Linux's files")
@pytest.mark.parametrize(
    ("group", "found"),
    [
        ({}, 40_000 * 1024),
        ({f"{GROUP}.max": "max\n"}, 40_000 * 1024),
        (
            {
                f"{GROUP}.max": "10000000\n",
                f"{GROUP}.current": "6000000\n",
                f"{GROUP}.stat": "anon 3\ninactive_file 500000",
            },
            4_500_000,  # cached files of the container count as free
        ),
        (
            {f"{GROUP}.max": "900000000000\n", f"{GROUP}.current": "5\n", f"{GROUP}.stat": "inactive_file 0"},
            40_000 * 1024,
        ),
    ],
)
def test_memory_is_what_the_machine_and_the_container_leave(
    monkeypatch: pytest.MonkeyPatch, group: dict[str, str], found: int
) -> None:
    fake_files(monkeypatch, {"/proc/meminfo": MEMINFO, **group})
    assert memory_available() == found


def test_memory_is_unknown_where_nothing_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_files(monkeypatch, {})
    assert memory_available() is None


def test_the_environment_is_plain_json() -> None:
    facts = json.loads(json.dumps(environment()))
    assert facts["torch"] == torch.__version__ and facts["physical_cores"] >= 1 and facts["cpu"]
