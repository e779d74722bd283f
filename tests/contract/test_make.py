"""The Makefile's outside: every target explains itself, and Debian packages that can't be had stop nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.source_tree import ROOT

pytestmark = [
    pytest.mark.check,
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]

TARGETS = {"setup", "check", "test", "bench", "bench-crash", "docs", "quickstart", "serve", "clean", "help"}
PACKAGES = ROOT / ".ci" / "debian-packages"


def test_help_explains_every_target() -> None:
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    explained = dict(re.findall(r"^  make (\S+) +(\S.*)$", result.stdout, re.MULTILINE))
    assert set(explained) == TARGETS


def test_scripts_can_be_executed() -> None:
    for script in (ROOT / ".ci" / "run", PACKAGES):
        assert os.access(script, os.X_OK), script


def test_every_pinned_version_is_exact() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def install(folder: Path, apt_get: str, user: str = "0") -> subprocess.CompletedProcess[str]:
    """Run the script where no package is there, `id -u` says `user` and `apt-get` does what is given."""
    for name, body in {"id": f"echo {user}", "apt-get": apt_get}.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "sh").symlink_to("/bin/sh")
    return subprocess.run(
        ["/bin/sh", str(PACKAGES)], env={"PATH": str(folder)}, capture_output=True, encoding="utf-8", check=False
    )


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_packages_are_asked_for_once_and_without_questions(tmp_path: Path) -> None:
    result = install(tmp_path, f'echo "$DEBIAN_FRONTEND $*" >> {tmp_path}/calls')
    assert result.returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["-qq", "chromium", "redis-server", "g++"]
    assert all(call.startswith("noninteractive ") for call in calls)
    assert all("--no-install-recommends" in call for call in calls[1:])


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_failing_apt_is_said_and_stops_nothing(tmp_path: Path) -> None:
    result = install(tmp_path, "exit 100")
    assert result.returncode == 0
    assert "could not install chromium; tests that need it skip" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_without_root_nothing_is_installed(tmp_path: Path) -> None:
    result = install(tmp_path, f"touch {tmp_path}/called", user="1000")
    assert result.returncode == 0
    assert "not installed here: chromium redis-server g++" in result.stdout
    assert not (tmp_path / "called").exists()
