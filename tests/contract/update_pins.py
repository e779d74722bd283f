"""Accepts the package as it is: writes `public_names.txt` and `size_limits.json` anew.

`python -m tests.contract.update_pins`, then read the diff before it is committed.
"""

from __future__ import annotations

import json

from tests.contract.sizes import LIMITS, current_limits
from tests.contract.source_tree import ROOT
from tests.contract.test_public_names import PINS, current_names


def main() -> None:
    """Write both files and say so."""
    PINS.write_text("\n".join(current_names()) + "\n", encoding="utf-8")
    LIMITS.write_text(json.dumps(current_limits(), indent=2) + "\n", encoding="utf-8")
    for path in (PINS, LIMITS):
        print(f"wrote {path.relative_to(ROOT).as_posix()}")


if __name__ == "__main__":
    main()
