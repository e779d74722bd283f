"""An ahead-of-time package as a runtime whose threads can be set. Not here: making or loading one (`static.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from deepseek.export.runtimes.runtime import Runtime, torch_threads


class PackageRuntime:
    """A package that `deepseek.export.static.load_static` returned, run with `threads` threads."""

    def __init__(self, package: Runtime, threads: int | None = None) -> None:
        self._package, self._threads = package, threads
        self.signature = package.signature

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. Raises ModelError if the inputs do not fit the signature."""
        with torch_threads(self._threads):
            return self._package.run(inputs)
