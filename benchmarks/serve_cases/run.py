"""One contestant of one measure in a process of its own: `python -m ... MEASURE CONTESTANT FOLDER full|quick RESULT`.

With `prepare NAME` in place of measure and contestant it writes a bundle instead, on the server's core.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serve_cases.batching import batching
from benchmarks.serve_cases.bundles import make
from benchmarks.serve_cases.measures import overload, table, tiny
from benchmarks.serve_cases.process import SERVER_CORE
from benchmarks.serve_cases.rpc import rpc

MEASURES: dict[str, Callable[[str, Path, bool], tuple[float, dict[str, float], dict[str, Any]]]] = {
    "tiny": tiny,
    "overload": overload,
    "table": table,
    "rpc": rpc,
    "batching": batching,
}


def main() -> None:
    """Measure, or prepare, and write the result."""
    measure, contestant, folder, size, result = sys.argv[1:]
    if measure == "prepare":
        if contestant != "resnet18":  # that one is measured in one process with all cores
            os.sched_setaffinity(0, {SERVER_CORE})
        make(contestant, Path(folder))
        found: tuple[float, dict[str, float], dict[str, Any]] = (1.0, {}, {})
    else:
        found = MEASURES[measure](contestant, Path(folder), size == "quick")
    value, outputs, details = found
    Path(result).write_text(json.dumps({"value": value, "outputs": outputs, "details": details}), encoding="utf-8")


if __name__ == "__main__":
    main()
