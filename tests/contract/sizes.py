"""Prints how long the package's files and functions are: `python -m tests.contract.sizes`."""

from __future__ import annotations

import json
import statistics

from tests.contract.source_tree import ROOT, Size, file_sizes, function_sizes

LIMITS = ROOT / "tests" / "contract" / "size_limits.json"


def current_limits() -> dict[str, dict[str, int | str]]:
    """Return the longest file and function as `size_limits.json` keeps them."""
    longest = {"file": file_sizes()[0], "function": function_sizes()[0]}
    return {kind: {"lines": size.lines, "where": size.where} for kind, size in longest.items()}


def pinned_limits() -> dict[str, dict[str, int | str]]:
    """Return the longest file and function that were accepted."""
    limits: dict[str, dict[str, int | str]] = json.loads(LIMITS.read_text(encoding="utf-8"))
    return limits


def report() -> str:
    """Return the longest files and functions with their medians, as text."""
    return "\n".join([*_lines("files", file_sizes()), *_lines("functions", function_sizes())])


def _lines(title: str, sizes: list[Size]) -> list[str]:
    median = statistics.median(size.lines for size in sizes)
    return [f"{len(sizes)} {title}, median {median:.0f} lines, longest:"] + [
        f"  {size.lines:4d}  {size.where}" for size in sizes[:5]
    ]


if __name__ == "__main__":
    print(report())
