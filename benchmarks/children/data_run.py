"""One contestant of `data`: `python -m benchmarks.children.data_run CASE MEASURE CONTESTANT FOLDER QUICK RESULT`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import cast

from benchmarks.data_cases.case import Case


def main(argv: list[str]) -> int:
    """Run one contestant and write its result."""
    name, measure, contestant, folder, quick, result = argv
    case = cast(Case, importlib.import_module(f"benchmarks.data_cases.{name}"))
    rate, outputs = case.run(measure, contestant, Path(folder), quick == "1")
    Path(result).write_text(json.dumps({"value": rate, "outputs": {**outputs, "rate": rate}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
