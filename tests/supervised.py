"""A real supervisor in a thread of the test's process, with worker processes that serve a fake model."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from deepseek.serve.options import Safety, ServerLimits, ServerOptions
from deepseek.serve.sockets import bind
from deepseek.serve.supervisor import Supervisor

ROOT = Path(__file__).parents[1]
WORKER = """
import sys
from deepseek.serve.worker import Worker
from tests.fake_serving import FakeModel

sys.exit(Worker().run({"m": FakeModel("fine ", step_seconds=0.002)}))
"""
"""What a worker runs."""
KEY = {"authorization": "Bearer k-1"}


class Supervised:
    """A supervisor in a thread of this process, with `workers` processes."""

    def __init__(self, script: str, workers: int = 2, hang_seconds: float = 15.0, **options: Any) -> None:
        given = {"limits": ServerLimits(drain_seconds=20.0), "safety": Safety(api_key="k-1"), **options}
        self.listener = bind("127.0.0.1", 0)
        self.listener.listen(128)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.supervisor = Supervisor(
            {"models": {}, "options": ServerOptions(**given).model_dump(mode="json")},
            self.listener,
            workers,
            command=(sys.executable, "-c", script),
            hang_seconds=hang_seconds,
        )
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.client = httpx.Client(base_url=self.url, timeout=60, headers=KEY)

    def _run(self) -> None:
        try:
            self.supervisor.run(lambda _: self.ready.set())
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Supervised:
        self.thread.start()
        while not self.ready.wait(0.1):
            if not self.thread.is_alive():
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self.thread.join(60)
        self.client.close()
        self.listener.close()

    def fresh(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask on a connection of its own, so that any worker may answer."""
        with httpx.Client(base_url=self.url, timeout=60, headers=KEY) as client:
            return client.request(method, path, **more)

    def health(self) -> dict[str, Any]:
        """Return what some worker tells of itself."""
        return self.fresh("GET", "/health").json()  # type: ignore[no-any-return]

    def of_each(self, method: str, path: str) -> dict[int, httpx.Response]:
        """Return the answer of every worker, by its number."""
        found: dict[int, httpx.Response] = {}
        deadline = time.monotonic() + 60
        while len(found) < len(self.supervisor.pids()):
            assert time.monotonic() < deadline, "some worker never answers"
            with httpx.Client(base_url=self.url, timeout=60, headers=KEY) as client:
                number = client.get("/health").json()["worker"]
                if number not in found:
                    found[number] = client.request(method, path)
        return found

    def wait_until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.thread.is_alive(), self.error
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.05)


@contextlib.contextmanager
def supervised(**options: Any) -> Iterator[Supervised]:
    """Yield two workers, ready; their processes find this repository's tests."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        with Supervised(WORKER, **options) as running:
            assert running.ready.is_set(), running.error
            yield running
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert running.error is None
    assert running.supervisor.pids() == [None, None]
