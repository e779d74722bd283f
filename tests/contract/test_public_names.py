"""The public names of every module, held against `public_names.txt`: no name comes, goes or changes unnoticed."""

from __future__ import annotations

import difflib

import pytest

from tests.contract.source_tree import ROOT, modules, public_names

pytestmark = pytest.mark.check

PINS = ROOT / "tests" / "contract" / "public_names.txt"


def current_names() -> list[str]:
    """Return `module:name` of every public name, sorted."""
    public = [module for module in modules().values() if module.is_public and not module.name.endswith("__main__")]
    return sorted(f"{module.name}:{name}" for module in public for name in public_names(module))


def test_public_names_are_the_pinned_ones() -> None:
    pinned = PINS.read_text(encoding="utf-8").splitlines()
    diff = list(difflib.unified_diff(pinned, current_names(), "pinned", "now", lineterm="", n=0))
    assert not diff, (
        "public names changed:\n" + "\n".join(diff) + "\nIf that is meant: python -m tests.contract.update_pins, "
        "and a line in CHANGELOG.md"
    )
