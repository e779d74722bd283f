"""One timed import in fresh interpreters: `python -m benchmarks.children.import_run MODULE RESULT`.

The figure is the seconds that `python -c "import MODULE"` takes beyond an empty interpreter, each run once after an
unmeasured run that compiles and caches the files. "nothing" stands for the empty interpreter itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

NOTHING = "nothing"
_COUNT = (
    "import sys; before = set(sys.modules); import {0}; print(len(set(sys.modules) - before), 'torch' in sys.modules)"
)


def run(module: str) -> dict[str, object]:
    """Return seconds over an empty interpreter, the number of modules loaded and whether torch is among them."""
    statement = "pass" if module == NOTHING else f"import {module}"
    if module == NOTHING:
        count, has_torch = "0", "False"
    else:
        count, has_torch = _python(_COUNT.format(module)).split()
    _seconds("pass")
    empty = _seconds("pass")
    whole = _seconds(statement)
    return {
        "value": whole - empty if module != NOTHING else whole,
        "outputs": {"modules": float(count), "loads_torch": float(has_torch == "True")},
        "details": {"empty_seconds": empty, "whole_seconds": whole},
    }


def _seconds(statement: str) -> float:
    start = time.perf_counter()
    _python(statement)
    return time.perf_counter() - start


def _python(statement: str) -> str:
    command = [sys.executable, "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout  # noqa: S603


def main(argv: list[str]) -> None:
    """Run `MODULE RESULT`."""
    module, result = argv
    Path(result).write_text(json.dumps(run(module)))


if __name__ == "__main__":
    main(sys.argv[1:])
