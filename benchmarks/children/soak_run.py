"""A server under a mixture of good, wrong and broken-off requests, and what it holds before and after.

`python -m benchmarks.children.soak_run REQUESTS RESULT` serves a small untrained model with keys, rates and an audit
log in a process of its own, warms it up with a fifth of the requests, and writes by how many percent its memory grew.
Not here: the verdict (see `benchmarks.serve_soak`).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_KEY = "soak-key"
_CLIENTS = 4


class Held(NamedTuple):
    """What a process holds: resident bytes, threads, open descriptors."""

    memory: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Held:
        """Read it from Linux' /proc."""
        status = Path(f"/proc/{pid}/status").read_text()
        memory, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) for name in ("VmRSS", "Threads"))
        return cls(memory * 1024, threads, len(os.listdir(f"/proc/{pid}/fd")))


class Mixture:
    """Requests of many kinds from a few clients at once; counts the statuses, 0 for those it broke off itself."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._port = port
        self._headers = {"content-type": "application/json"}
        self._key = {} if key is None else {"authorization": f"Bearer {key}"}
        self.statuses: Counter[int] = Counter()
        self._kinds: list[Callable[[http.client.HTTPConnection, int], int]] = [
            self._complete,
            self._stream,
            self._complete,
            self._wrong_field,
            self._unknown_path,
            self._complete,
            self._wrong_key,
            self._leave,
            self._metrics,
            self._no_json,
        ]

    def send(self, requests: int) -> None:
        """Send that many and wait for the last answer."""
        numbers = iter(range(requests))
        lock = threading.Lock()

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                status = self._kinds[number % len(self._kinds)](connection, number)
                with lock:
                    self.statuses[status] += 1
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _post(self, connection: http.client.HTTPConnection, body: str, headers: dict[str, str]) -> int:
        connection.request("POST", "/v1/completions", body, {**self._headers, **headers})
        response = connection.getresponse()
        response.read()
        return response.status

    def _complete(self, connection: http.client.HTTPConnection, number: int) -> int:
        body = {"prompt": "ab" * (1 + number % 7), "max_tokens": 1 + number % 5, "seed": number}
        return self._post(connection, json.dumps(body), self._key)

    def _stream(self, connection: http.client.HTTPConnection, number: int) -> int:
        body = {"prompt": "abc", "max_tokens": 6, "stream": True, "stop": ["\n\n"]}
        return self._post(connection, json.dumps(body), self._key)

    def _wrong_field(self, connection: http.client.HTTPConnection, number: int) -> int:
        return self._post(connection, json.dumps({"prompt": "x", f"field{number}": 1}), self._key)

    def _no_json(self, connection: http.client.HTTPConnection, number: int) -> int:
        return self._post(connection, "{" * (1 + number % 100), self._key)

    def _wrong_key(self, connection: http.client.HTTPConnection, number: int) -> int:
        return self._post(connection, "{}", {"authorization": f"Bearer {number}"})

    def _unknown_path(self, connection: http.client.HTTPConnection, number: int) -> int:
        return self._get(connection, f"/v1/models/none-{number}")

    def _metrics(self, connection: http.client.HTTPConnection, number: int) -> int:
        return self._get(connection, "/metrics")

    def _get(self, connection: http.client.HTTPConnection, path: str) -> int:
        connection.request("GET", path, headers=self._key)
        response = connection.getresponse()
        response.read()
        return response.status

    def _leave(self, connection: http.client.HTTPConnection, number: int) -> int:
        """Begin to read a stream on a connection of its own, and go."""
        body = json.dumps({"prompt": "abc", "max_tokens": 40, "stream": True})
        own = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        own.request("POST", "/v1/completions", body, {**self._headers, **self._key})
        own.getresponse().read(1)
        own.close()
        return 0


def run(requests: int) -> dict[str, object]:
    """Return by how many percent the server's memory grew, and what it held."""
    with tempfile.TemporaryDirectory() as folder:
        _save_model(Path(folder) / "soak")
        command = [sys.executable, "-c", "from deepseek.cli.serve import main; main()", f"{folder}/soak", "--port", "0"]
        command += ["--device", "cpu", "--rate", "9000000", "--audit-log", f"{folder}/audit.jsonl"]
        environment = {**os.environ, "DEEPSEEK_API_KEY": _KEY, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            line = server.stdout.readline() if server.stdout is not None else ""
            mixture = Mixture(int(re.search(r"http://127.0.0.1:(\d+)", line)[1]), _KEY)
            mixture.send(requests // 5)
            before = Held.of(server.pid)
            mixture.send(requests)
            after = Held.of(server.pid)
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
            server.wait()
    return {
        "value": max(0.01, 100.0 * (after.memory / before.memory - 1)),
        "outputs": {},
        "details": {
            "before": before._asdict(),
            "after": after._asdict(),
            "statuses": {str(status): count for status, count in sorted(mixture.statuses.items())},
            "exit_code": code,
        },
    }


def _save_model(path: Path) -> None:
    import torch

    from deepseek.bundle import save
    from deepseek.data.tokenizer import Tokenizer
    from deepseek.models.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    text = " ".join(f"{first}{second}" for first in "abcdefgh" for second in "ijklmnop")
    config = GPTConfig(vocab_size=280, max_length=128, num_layers=2, d_model=32, num_heads=2)
    save(GPT(config), path, tokenizer=Tokenizer.train([text * 20], vocab_size=280))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(int(sys.argv[1]))))
