"""Imports below `deepseek` that name a torch module: `import deepseek.nn.functional as F` gives `torch.nn.functional`.

`install` puts one finder in front of `sys.meta_path`. It answers only for names below `deepseek` that are no file
of ours, with torch's own module object, so class identity holds; torch's modules are not changed.
Not here: attribute access (`ds.nn.functional`), which `deepseek.lazy` answers.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_OURS = "deepseek."
_THEIRS = "torch."


class TorchPaths:
    """Finds and loads `deepseek.X` as `torch.X` where we have no module X.

    Follows the protocols of `importlib.abc` without importing that module, which would double our import time.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_OURS):
            return None
        # A parent that is torch's own module has torch's folder as its path: the usual finder would load a second copy.
        below_ours = sys.modules[fullname.rpartition(".")[0]].__name__.startswith(_OURS.rstrip("."))
        if below_ours and PathFinder.find_spec(fullname, path) is not None:
            return None
        if not _torch_has(_torch_name(fullname)):
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]  # a loader by protocol, not by base class

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(_torch_name(module.__name__))


def install() -> None:
    """Put the finder in place, once for the process."""
    if not any(type(finder).__name__ == TorchPaths.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchPaths())


def _torch_name(fullname: str) -> str:
    return _THEIRS + fullname.removeprefix(_OURS)


def _torch_has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
