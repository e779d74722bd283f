"""The longest file and function may not grow unnoticed: a ratchet, and a hard limit above it."""

from __future__ import annotations

import pytest

from tests.contract.sizes import current_limits, pinned_limits, report
from tests.contract.source_tree import file_sizes, function_sizes

pytestmark = pytest.mark.check

MOST_LINES = {"file": 500, "function": 80}


@pytest.mark.parametrize("kind", ["file", "function"])
def test_longest_does_not_grow(kind: str) -> None:
    now, pinned = current_limits()[kind], pinned_limits()[kind]
    assert int(now["lines"]) <= int(pinned["lines"]), (
        f"the longest {kind} had {pinned['lines']} lines ({pinned['where']}), now {now['lines']} ({now['where']}).\n"
        f"{report()}\nSplit it; or, if it is one idea, accept it: python -m tests.contract.update_pins"
    )


def test_no_file_or_function_passes_the_hard_limit() -> None:
    over = [size for size in file_sizes() if size.lines > MOST_LINES["file"]]
    over += [size for size in function_sizes() if size.lines > MOST_LINES["function"]]
    assert not over, "too long, split these: " + ", ".join(f"{size.where} ({size.lines} lines)" for size in over)
