"""check_env on machines made up for the purpose: each trouble gives one finding with the command that mends it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.utils.check_env import cpu
from deepseek.utils.check_env.check import collect, exit_code
from deepseek.utils.check_env.finding import Finding, numbers, ok, problem, warning
from deepseek.utils.check_env.machine import Machine, Output, this_machine
from deepseek.utils.check_env.memory import THP, TUNABLES
from deepseek.utils.check_env.show import WIDTH, as_json, as_text, show
from deepseek.utils.check_env.tools import EXTRAS
from deepseek.utils.check_env.versions import CORE
from tests.fake_machine import GIB, machine, named

ROOT = Path(__file__).parents[2]


def test_a_good_machine_has_no_warning() -> None:
    findings = collect(machine())
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert exit_code(findings) == 0
    assert named(findings, "GPU").found.startswith("none")


MISSING = Output(1, "", "Traceback:\nModuleNotFoundError: No module named 'torch'\n")
BROKEN = Output(1, "", "OSError: libtorch.so: no such file\n")
QUOTA = {"/sys/fs/cgroup/cpu.max": "200000 100000"}
LIMIT = {"/sys/fs/cgroup/memory.max": str(2 * GIB)}


def room(**free: int | None) -> Callable[[str], int | None]:
    """Return a `free_bytes` that answers these folders (by the end of their path) so, all others with plenty."""
    return lambda folder: free.get(folder.rpartition("/")[2], 99 * GIB)


def trouble(name: str, status: str, fix: str, case: str = "", **changes: Any) -> Any:
    return pytest.param(name, status, fix, changes, id=f"{name}{case and ': '}{case}")


@pytest.mark.parametrize(
    ("name", "status", "fix", "changes"),
    [
        trouble("Python", "problem", "python3.11 -m venv", python=(3, 9, 2)),
        trouble("torch", "problem", "pip install", "missing", torch=MISSING),
        trouble("torch", "problem", "--force-reinstall", "broken", torch=BROKEN),
        trouble("torch", "problem", "--force-reinstall", "crash", torch=Output(-11, "")),
        trouble("torch", "problem", "--upgrade", "old", torch={"version": "2.1.0"}),
        trouble("core packages", "problem", "pip install safetensors", missing=["safetensors"]),
        trouble("text encoding", "warning", "PYTHONUTF8=1", encodings={"output": "ascii"}),
        trouble("text encoding", "warning", "setx PYTHONUTF8", "gbk", encodings={"output": "gbk"}, system="Windows"),
        trouble("processor", "warning", "-cpu host", files={"/proc/cpuinfo": "model name : Old\nflags : fpu sse4_2\n"}),
        trouble("threads", "warning", "export OMP_NUM_THREADS=4", "too many", environ={"OMP_NUM_THREADS": "64"}),
        trouble("threads", "warning", "export OMP_NUM_THREADS=4", "too few", environ={"OMP_NUM_THREADS": "1"}),
        trouble("threads", "warning", "export OMP_NUM_THREADS=4", "no number", environ={"OMP_NUM_THREADS": "all"}),
        trouble("threads", "warning", "export OMP_NUM_THREADS=2", "quota", files=QUOTA),
        trouble("memory", "problem", "ps aux", "little", memory=GIB // 2),
        trouble("memory", "warning", "ps aux", "some", memory=3 * GIB),
        trouble("memory", "warning", "docker run --memory", "limit", files=LIMIT),
        trouble("shared memory", "warning", "--shm-size", free_bytes=room(shm=2**26)),
        trouble("huge pages", "warning", f"echo madvise | sudo tee {THP}", files={THP: "always madvise [never]"}),
        trouble("allocator", "warning", TUNABLES, "unset", environ={"GLIBC_TUNABLES": ""}),
        trouble("allocator", "warning", TUNABLES, "part", environ={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        trouble("temporary", "problem", "export TMPDIR", free_bytes=room(scratch=0)),
        trouble("home", "warning", "XDG_CACHE_HOME", free_bytes=room(home=None)),
        trouble("port 8080", "warning", "--port 8082", port_is_free=lambda port: port not in (8080, 8081)),
        trouble("port 29500", "warning", "MASTER_PORT=29501", port_is_free=lambda port: port != 29500),
        trouble("open files", "warning", "ulimit -n", open_files=256),
        trouble("C++ compiler", "warning", "sudo apt-get install -y g++", commands={"apt-get": ""}, missing=["g++"]),
        trouble("C++ compiler", "warning", "unset CXX", "CXX", environ={"CXX": "/gone/c++"}),
        trouble("C++ compiler", "warning", "xcode-select", "macOS", missing=["g++"], system="Darwin"),
        trouble("C compiler", "warning", "sudo dnf install -y gcc", commands={"dnf": ""}, missing=["gcc"]),
        trouble("Python headers", "warning", "python3.12-dev", files={"/headers/Python.h": None}),
        trouble("[serve]", "warning", "deepseek-framework[serve]", missing=["uvicorn"]),
        trouble("[export]", "ok", "deepseek-framework[export]", "absent", missing=EXTRAS["export"]),
    ],
)
def test_a_trouble_is_found_and_can_be_mended(name: str, status: str, fix: str, changes: dict[str, Any]) -> None:
    findings = collect(machine(**changes))
    finding = named(findings, name)
    assert finding.status == status
    assert fix in finding.fix
    assert finding.why or status == "ok"
    others = [other.name for other in findings if other.status == "problem" and other.name != name]
    assert others == []
    assert exit_code(findings) == int(status == "problem")


def test_the_cores_of_a_processor_are_counted_without_its_threads() -> None:
    plain = machine()
    assert cpu.usable_cores(plain, cpu.read_cpu(plain)) == 4
    one = machine(logical_cpus=1)
    assert cpu.usable_cores(one, cpu.read_cpu(one)) == 1
    older = machine(
        files={"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"}
    )
    assert cpu.usable_cores(older, cpu.read_cpu(older)) == 3


def test_matrix_units_are_named() -> None:
    found = named(collect(machine()), "processor").found
    assert all(unit in found for unit in ("AMX BF16", "AMX INT8", "AVX-512 BF16", "AVX-512 VNNI", "AVX2"))
    arm = machine(architecture="aarch64", files={"/proc/cpuinfo": "processor : 0\nFeatures : fp asimd sve bf16 i8mm\n"})
    assert "SVE, BF16, INT8 matrix, NEON" in named(collect(arm), "processor").found


def test_a_mac_answers_through_sysctl() -> None:
    mac = machine(
        files={"/proc/cpuinfo": None, "/proc/meminfo": None, THP: None},
        commands={
            "sysctl -n machdep.cpu.brand_string": "Apple M4\n",
            "sysctl -n hw.physicalcpu": "4\n",
            "sysctl -n hw.memsize": f"{16 * GIB}\n",
            "sysctl hw.optional": "hw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_SME: 0\nhw.optional.neon: 1\n",
        },
        system="Darwin",
        architecture="arm64",
        libc=("", ""),
        memory=None,
        torch={"mps": True},
    )
    findings = collect(mac)
    assert named(findings, "processor").found == "Apple M4: BF16, NEON"
    assert named(findings, "memory").found == "16.0 GiB"
    assert named(findings, "Apple GPU").status == "ok"
    assert all(finding.status == "ok" for finding in findings)


def test_windows_needs_no_linux_files() -> None:
    asked = "(Get-CimInstance Win32_ComputerSystem).TotalPhysicalMemory"
    windows = machine(
        files=dict.fromkeys(("/proc/cpuinfo", "/proc/meminfo", THP)),
        commands={"cl": "", f"powershell -NoProfile -Command {asked}": f"{8 * GIB}\r\n"},
        missing=["uvloop", "g++", "gcc"],
        system="Windows",
        architecture="AMD64",
        libc=("", ""),
        memory=None,
        open_files=None,
        logical_cpus=4,
    )
    findings = collect(windows)
    assert all(finding.status == "ok" for finding in findings), findings
    assert named(findings, "memory").found == "8.0 GiB"


def test_places_are_named() -> None:
    environ = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "4", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    found = named(collect(machine(environ=environ, files={"/.dockerenv": ""})), "runs in").found
    assert found == "Linux x86_64, Kubernetes pod, SLURM job 77 on 4 node(s), container"


def test_a_probe_that_fails_is_a_finding_and_the_others_go_on() -> None:
    def explode(*_: object) -> Any:
        raise RuntimeError("this disk speaks in riddles")

    findings = collect(machine(free_bytes=explode))
    broken = [finding for finding in findings if finding.area == "check"]
    assert {finding.name for finding in broken} == {"disks", "shared memory"}
    assert all("riddles" in finding.found and finding.status == "warning" for finding in broken)
    assert named(findings, "port 8080").status == "ok"


def test_a_machine_that_answers_nothing_gets_findings_all_the_same() -> None:
    def explode(*_: object) -> Any:
        raise OSError("no")

    questions = {name: explode for name in ("run", "read", "which", "version_of", "free_bytes", "port_is_free")}
    findings = collect(dataclasses.replace(machine(), **questions))
    assert named(findings, "Python").status == "ok"
    assert named([finding for finding in findings if finding.area == "versions"], "torch").status == "problem"


def test_answers_that_make_no_sense_do_not_crash() -> None:
    odd = machine(
        files={
            name: "\x00:::\n\n: :\n-1 x" for name in ("/proc/cpuinfo", "/proc/meminfo", "/sys/fs/cgroup/cpu.max", THP)
        },
        commands={name: "Error: \x00, , , ,\n{" for name in ("nvidia-smi", "rocm-smi", "lspci", "nvcc --version")},
        torch=Output(0, "torch facts: {nonsense"),
    )
    assert named(collect(odd), "NVIDIA driver").status == "problem"


@pytest.fixture
def mixed() -> list[Finding]:
    return [
        ok("versions", "Python", "3.12.1"),
        warning("memory", "allocator", "未设置 " * 20, why="because " * 20, fix=f"export GLIBC_TUNABLES={TUNABLES}"),
        problem("versions", "torch", "not installed", why="nothing runs", fix="pip install torch"),
        ok("optional", "[nlp]", "not installed", fix="pip install 'deepseek-framework[nlp]'"),
    ]


def test_json_holds_every_finding(mixed: Sequence[Finding]) -> None:
    text = as_json(mixed)
    assert text.isascii()
    value = json.loads(text)
    assert value["exit_code"] == 1
    assert value["summary"] == {"ok": 2, "warning": 1, "problem": 1}
    assert [Finding(**item) for item in value["findings"]] == mixed


def test_text_names_each_command_on_a_line_of_its_own(mixed: Sequence[Finding]) -> None:
    lines = as_text(mixed).splitlines()
    for finding in mixed:
        if finding.fix:
            assert f"    {finding.fix}" in lines
    assert lines[-1] == "2 ok, 1 warning(s), 1 problem(s)"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table_fits_80_columns(mixed: Sequence[Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    show([*mixed, *collect(machine())], out, json=False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    long = [line for line in lines if len(line) > WIDTH and "GLIBC_TUNABLES=" not in line]
    assert long == []
    assert any(line.startswith("memory") for line in lines)


def test_output_that_is_not_utf8_gets_what_it_can_show(mixed: Sequence[Finding]) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    show(mixed, out, json=False)
    assert b"allocator: ???" in raw.getvalue()


def test_versions_are_read_up_to_what_is_no_number() -> None:
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("2.10.0a0") == (2, 10, 0)
    assert numbers("12.8") == (12, 8)
    assert numbers("") == numbers("unknown") == ()


def test_extras_and_core_are_those_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: Sequence[str]) -> set[str]:
        return {re.match(r"[\w.-]+", line)[0] for line in requirements}  # type: ignore[index]

    declared = project["optional-dependencies"]
    everything = re.search(r"\[(.*)\]", declared["all"][0])[1].split(",")  # type: ignore[index]
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {
        extra: names(declared[extra]) for extra in everything
    }
    assert {*CORE, "torch"} == names(project["dependencies"])


def test_this_machine_answers_every_question() -> None:
    here = this_machine()
    assert isinstance(here, Machine)
    assert here.logical_cpus >= 1
    assert here.run([sys.executable, "-c", "print('hello')"], 60.0) == Output(0, "hello\n")
    assert here.run(["/no/such/program"], 1.0) is None
    assert here.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) is None
    assert here.read("/no/such/file") is None
    assert here.version_of("no-such-distribution-anywhere") is None
    assert here.version_of("numpy") is not None
    assert here.free_bytes("/no/such/folder") is None
    assert all((here.free_bytes(folder) or 0) > 0 for folder in here.folders.values())


def test_a_port_in_use_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not this_machine().port_is_free(port)
    assert this_machine().port_is_free(port)


def test_the_command_runs_here_without_a_warning() -> None:
    command = [sys.executable, "-W", "error", "-m", "deepseek.utils.check_env", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert result.stderr == ""
    value = json.loads(result.stdout)
    assert result.returncode == value["exit_code"]
    finding = named([Finding(**item) for item in value["findings"]], "torch")
    assert finding.found.startswith(torch.__version__)
