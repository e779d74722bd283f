"""Training runs that are killed again and again: a nursery process loads the libraries once and forks a child a life.

Starting Python and importing torch takes seconds that say nothing about a framework, so every contestant gets its
nursery; the child is a process of its own, and its death by SIGKILL is a real one. Linux and macOS only.
`python -m benchmarks.lives MODULE` is the nursery: it imports MODULE, then forks for each line of JSON on its standard
input a child that calls `MODULE.live(options)`, kills it as asked, and answers with how it ended.
Not here: what a life does, and what its end means (`benchmarks.kill_anywhere`, `tests/kill_child.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
"""Seconds after which a life that does not end by itself is taken for hung."""


@dataclass(frozen=True)
class Death:
    """How a life ended: `code` is the exit code, or minus the signal; `born` and `died` are monotonic seconds."""

    code: int
    born: float
    died: float
    log: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL


class Nursery:
    """A process that has loaded `module` and gives birth to lives, one after the other."""

    def __init__(self, module: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "benchmarks.lives", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=None if env is None else dict(env),
        )

    def live(
        self, options: dict[str, Any], *, fault: str = "", kill_after: float | None = None, kill_group: bool = False
    ) -> Death:
        """Let a child call `live(options)`; return how it ended.

        `fault` is planted as DEEPSEEK_FAULT. After `kill_after` seconds it is killed from outside, with `kill_group`
        together with all processes it has started. Raises RuntimeError when the nursery itself has died.
        """
        request = {"options": options, "fault": fault, "kill_after": kill_after, "kill_group": kill_group}
        return self._ask({**request, "learn": False})

    def prepare(self, options: dict[str, Any]) -> Death:
        """Let a first child live to its end, then import in the nursery whatever it has imported late."""
        return self._ask({"options": options, "fault": "", "kill_after": None, "kill_group": False, "learn": True})

    def _ask(self, request: dict[str, Any]) -> Death:
        with contextlib.suppress(BrokenPipeError):
            self._pipe("stdin").write(json.dumps({**request, "log": str(self._log)}) + "\n")
            self._pipe("stdin").flush()
        answer = self._pipe("stdout").readline()
        if not answer:
            raise RuntimeError(f"the nursery ended with exit code {self._process.wait()}")
        return Death(**json.loads(answer), log=self._log.read_text(encoding="utf-8", errors="replace"))

    def _pipe(self, name: str) -> Any:
        return getattr(self._process, name)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe("stdin").close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe("stdout").close()


def main(module_name: str) -> None:
    """Load the module, then answer requests until the input ends."""
    module = importlib.import_module(module_name)
    for line in sys.stdin:
        request = json.loads(line)
        born = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(_live(module, request))
        code = _wait(child, request["kill_after"], request["kill_group"])
        print(json.dumps({"code": code, "born": born, "died": time.monotonic()}), flush=True)
        if request["learn"]:
            _import_all(Path(request["log"] + ".modules"))


def _live(module: Any, request: dict[str, Any]) -> int:
    """Be the child; return its exit code. It ends without the interpreter's tidying, which is not made for forks."""
    _become_a_life(request)
    try:
        module.live(request["options"])
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if request["learn"]:
            Path(request["log"] + ".modules").write_text("\n".join(sys.modules))
    return 0


def _import_all(names: Path) -> None:
    """Import what a child wrote down, as far as it goes: some names are no modules."""
    for name in names.read_text().split():
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                importlib.import_module(name)


def _become_a_life(request: dict[str, Any]) -> None:
    """Leave the nursery's pipes, lead a process group of one's own, and plant the fault."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for own, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(own, standard)
    os.close(nothing)
    os.close(log)
    if request["fault"]:
        from deepseek.faults import VARIABLE, faults_from_environment

        os.environ[VARIABLE] = request["fault"]
        faults_from_environment()


def _wait(child: int, kill_after: float | None, kill_group: bool) -> int:
    """Wait for the child's end, and see to it that it comes; return its exit code, or minus the signal."""
    start, limit = time.monotonic(), PATIENCE if kill_after is None else kill_after
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        left = limit - (time.monotonic() - start)
        if left <= 0:
            _kill(child, kill_group or kill_after is None)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return code if kill_after is not None else -signal.SIGALRM  # hung
        time.sleep(min(left, 0.002))


def _kill(child: int, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL) if group else os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
