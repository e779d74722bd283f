"""One case of `serve_llm` in a process of its own: `python -m benchmarks.serve_llm_cases.run CASE SHAPE FOLDER RESULT`.

CASE is hf, llama.cpp-16, llama.cpp-8, llama.cpp-4, mixed, prefix-90, prefix-0 or first-token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.serve_llm_cases import engine, single
from benchmarks.serve_llm_cases.shapes import SHAPES, Shape

SECONDS = 20.0


def run(case: str, shape: Shape, folder: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """Return the case's figures."""
    if case == "hf":
        return single.against_hf(shape, folder, seconds)
    if case.startswith("llama.cpp-"):
        return single.against_llama_cpp(shape, folder, case.removeprefix("llama.cpp-"), seconds)
    if case == "mixed":
        return engine.mixed(shape, folder, seconds)
    if case == "first-token":
        return engine.first_token(shape, folder)
    return engine.prefix(shape, folder, seconds, shared=case == "prefix-90")


def main(argv: list[str]) -> None:
    """Run `CASE SHAPE FOLDER RESULT`."""
    case, shape, folder, result = argv
    Path(result).write_text(json.dumps(run(case, SHAPES[shape], Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
