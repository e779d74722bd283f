"""Faults on purpose: each kind fails as the real thing does, at the call that was asked for and at no other."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepseek import faults
from deepseek.errors import ConfigError, StorageError
from deepseek.faults import SITES, FaultInjector, InjectedFault, fault_point, faults_from_environment
from deepseek.files import storage_errors
from tests.contract.source_tree import PACKAGE
from tests.system import child_environment


def fired(injector: FaultInjector, calls: int, site: str = "user.test") -> list[int]:
    """Return the numbers of the calls, from 1, that failed."""
    with injector:
        failed = []
        for number in range(1, calls + 1):
            try:
                fault_point(site)
            except InjectedFault:
                failed.append(number)
    assert injector.fired == len(failed) and injector.reached == (calls if failed else injector.reached)
    return failed


def test_without_an_injector_nothing_happens() -> None:
    assert faults._active is None
    assert not any(fault_point(site) for site in SITES)


def test_the_nth_call_fails_and_with_every_more_of_them() -> None:
    assert fired(FaultInjector("user.test"), 5) == [1]
    assert fired(FaultInjector("user.test", 4), 9) == [4]
    assert fired(FaultInjector("user.test", 4, every=2), 9) == [4, 6, 8]
    assert fired(FaultInjector("user.test", 1, every=1), 3) == [1, 2, 3]
    assert fired(FaultInjector("user.*", 2), 3) == [2]
    assert fired(FaultInjector("user.other", 1), 3) == []


def test_chance_is_seeded_and_begins_anew_with_each_block() -> None:
    injector = FaultInjector("user.test", 11, chance=0.3, seed=5)
    first = fired(injector, 200)
    assert fired(injector, 200) == first and min(first) >= 11 and 30 < len(first) < 85
    assert fired(FaultInjector("user.test", 11, chance=0.3, seed=6), 200) != first


def test_injectors_may_be_nested_and_end_with_their_blocks() -> None:
    with FaultInjector("user.a", 2) as a:
        with FaultInjector("user.b") as b, pytest.raises(InjectedFault, match="fault number 1 at user.b"):
            fault_point("user.b")
        fault_point("user.b")
        fault_point("user.a")
        with pytest.raises(InjectedFault):
            fault_point("user.a")
    assert (a.reached, a.fired, b.reached, b.fired) == (2, 1, 1, 1) and faults._active is None


def test_calls_of_many_threads_are_counted_together() -> None:
    def call() -> None:
        for _ in range(500):
            fault_point("user.test")

    with FaultInjector("user.test", 1501, "nan", every=100) as injector:
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (injector.reached, injector.fired) == (2000, 5)


@pytest.mark.parametrize(
    ("kind", "code"), [("disk_full", errno.ENOSPC), ("io_error", errno.EIO), ("read_only", errno.EROFS)]
)
def test_a_disk_that_refuses_raises_what_the_system_raises(kind: str, code: int) -> None:
    with FaultInjector("checkpoint.write", kind=kind), pytest.raises(OSError) as raw:
        fault_point("checkpoint.write")
    assert raw.value.errno == code and raw.value.strerror == os.strerror(code)
    with FaultInjector("checkpoint.write", kind=kind), pytest.raises(StorageError) as told, storage_errors(Path("x")):
        fault_point("checkpoint.write")
    assert told.value.errno == code and told.value.fix


def test_nan_asks_the_caller_and_delay_waits() -> None:
    with FaultInjector("step.backward", 2, "nan"):
        assert [fault_point("step.backward") for _ in range(3)] == [False, True, False]
    with FaultInjector("step.begin", kind="delay", amount=0.02):
        start = time.monotonic()
        assert not fault_point("step.begin") and time.monotonic() - start >= 0.02


def test_the_wall_clock_jumps_until_the_block_ends_and_monotonic_clocks_do_not() -> None:
    clock, wall, monotonic = time.time, time.time(), time.monotonic()
    with FaultInjector("user.test", 1, "clock_jump", every=1, amount=-7200.0):
        assert abs(time.time() - wall) < 3600
        fault_point("user.test")
        assert -7200 <= time.time() - wall < -3600 and -7200 <= time.time_ns() / 1e9 - wall < -3600
        fault_point("user.test")
        assert -14400 <= time.time() - wall < -10800
        assert 0 <= time.monotonic() - monotonic < 3600
    assert time.time is clock and abs(time.time() - wall) < 3600


def test_out_of_memory_speaks_like_torch() -> None:
    torch = pytest.importorskip("torch")
    with FaultInjector("step.forward", kind="out_of_memory"), pytest.raises(RuntimeError) as injected:
        fault_point("step.forward")
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60)
    words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    assert words in str(injected.value) and words in str(real.value)


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("value", "code", "printed"),
    [
        ("user.test:3:kill", -9, "0 1"),
        ("user.test:3:term", -15, "0 1"),
        ("user.test:1:delay:0.001,user.test:2:kill", -9, "0"),
        ("user.*:2/2:exception", 0, "0 x 2 x 4 x"),
        ("user.test:1.0@7:exception", 0, "x x x x x x"),
        ("", 0, "0 1 2 3 4 5"),
    ],
)
def test_the_environment_plants_faults_in_a_child_process(value: str, code: int, printed: str) -> None:
    script = (
        "from deepseek.faults import fault_point, InjectedFault\n"
        "for i in range(6):\n"
        "    try:\n"
        "        fault_point('user.test')\n"
        "        print(i, flush=True)\n"
        "    except InjectedFault:\n"
        "        print('x', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_environment(DEEPSEEK_FAULT=value),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code and done.stdout.split() == printed.split(), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_an_interrupt_is_that_of_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with FaultInjector("step.begin", kind="interrupt"), pytest.raises(KeyboardInterrupt):
            fault_point("step.begin")
            signal.sigtimedwait([], 0.2)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("checkpoint.rename", "SITE:WHEN:KIND"),
        ("checkpoint.rename:x:kill", "such as checkpoint.rename:3:kill"),
        ("checkpoint.renam:3:kill", "did you mean 'checkpoint.rename'"),
        ("checkpoint.rename:3:kil", "did you mean 'kill'"),
        ("checkpoint.rename:0:kill", "nth and every of 1 or more"),
        ("checkpoint.rename:1/0:kill", "nth and every of 1 or more"),
        ("checkpoint.rename:1.5@3:kill", "chance from 0 to 1"),
    ],
)
def test_what_cannot_happen_is_refused(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_FAULT", value)
    with pytest.raises(ConfigError, match=re.escape(words)):
        faults_from_environment()
    assert faults._active is None


def test_every_fault_point_of_the_package_is_in_the_table_and_the_other_way_round() -> None:
    called: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        called |= set(re.findall(r"fault_point\(\"([^\"]+)\"\)", path.read_text(encoding="utf-8")))
    assert called == set(SITES)


def test_the_module_needs_no_torch() -> None:
    script = "import sys, deepseek.faults; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env=child_environment(), check=True)
