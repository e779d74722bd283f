"""Watching a folder of bundles: what appears is loaded, what changes is loaded anew, what goes is unloaded.

By looking every few seconds, so it works on network disks and in containers alike. A bundle is taken once two looks saw
it the same: it may still be on its way. Not here: how versions take over (see `service`).
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from deepseek.errors import BundleError, DeepSeekError
from deepseek.serve.folder import TEMPORARY, check_bundle, versions_of
from deepseek.serve.service import Service

_LOG = logging.getLogger("deepseek.serve")
_FILES = ("config.yaml", "model.safetensors", "tokenizer.json", "golden.json", "exports/runtime.json")

Stamp = tuple[tuple[str, int, int], ...]
"""Name, time of change and size of the files that make a bundle."""


class FolderWatcher:
    """Keeps a service in step with a folder."""

    def __init__(self, service: Service, folder: str | Path, seconds: float = 5.0) -> None:
        self._service = service
        self._folder = Path(folder)
        self._seconds = seconds
        self._seen = look(self._folder)
        self._done = dict(self._seen)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deepseek-watch", daemon=True)

    def start(self) -> None:
        """Begin to look every few seconds."""
        self._thread.start()

    def close(self) -> None:
        """Look no more; a load that has begun is waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> None:
        """Look once, and load and unload what has settled since."""
        now = look(self._folder)
        settled = {name: state for name, state in now.items() if self._seen.get(name) == state}
        self._seen = now
        for name, state in settled.items():
            if self._done.get(name) != state:
                self._done[name] = state  # also where it fails: it is tried again when it changes
                self._load(name, list(state)[-1])
        for name in [name for name in self._done if name not in now]:
            del self._done[name]
            self._unload(name)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.step()
            except Exception:
                _LOG.exception("watching %s failed; it goes on", self._folder)

    def _load(self, name: str, version: str) -> None:
        try:
            self._service.load(name, self._folder / name, version)
        except DeepSeekError as error:
            _LOG.error("the model '%s' version %s was not loaded: %s", name, version, error)

    def _unload(self, name: str) -> None:
        try:
            self._service.unload(name)
        except DeepSeekError as error:
            _LOG.warning("the model '%s' was not unloaded: %s", name, error)


def look(folder: Path) -> dict[str, dict[str, Stamp]]:
    """Return name -> version -> stamp of all bundles; one that may not be served is passed over. Raises OSError."""
    found: dict[str, dict[str, Stamp]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or TEMPORARY in path.name or not path.is_dir():
            continue
        versions = versions_of(path)
        if not versions:
            continue
        try:
            check_bundle(path.name, path)
        except BundleError as error:
            _LOG.debug("%s is not served: %s", path, error)
            continue
        found[path.name] = {version: _stamp(bundle) for version, bundle in versions.items()}
    return found


def _stamp(bundle: Path) -> Stamp:
    stamps = []
    for name in _FILES:
        try:
            facts = (bundle / name).stat()
        except OSError:
            continue
        stamps.append((name, facts.st_mtime_ns, facts.st_size))
    return tuple(stamps)
