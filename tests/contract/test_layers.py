"""Imports point down: every import of the package, held against the floor table in docs/architecture.md.

The table there is the only one; this test reads it.
"""

from __future__ import annotations

import graphlib
import re

import pytest

from tests.contract.source_tree import PACKAGE, ROOT, imports, modules

pytestmark = pytest.mark.check

TABLE = ROOT / "docs" / "architecture.md"
INDEX = "__init__.py"
"""The package's own `__init__.py` names everything; nothing imports it, apart from its version:
`from deepseek import __version__`."""


def read_floors() -> dict[str, int]:
    """Return the floor of each room, a room being `name.py` or `name/` directly in the package."""
    floors: dict[str, int] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        row = re.match(r"\|\s*(\d+)\s*\|(.*)\|\s*$", line)
        if row:
            for room in re.findall(r"`(\w+(?:\.py|/))`", row[2]):
                if (PACKAGE / room).exists():
                    assert room not in floors, f"{room} stands on two floors in {TABLE.name}"
                    floors[room] = int(row[1])
    return floors


def room_of(module_name: str) -> str:
    """Return the room a module belongs to: `deepseek.nn.int8_linear` -> `nn/`, `deepseek.errors` -> `errors.py`."""
    parts = module_name.split(".")
    if len(parts) == 1:
        return INDEX
    return f"{parts[1]}/" if (PACKAGE / parts[1]).is_dir() else f"{parts[1]}.py"


def test_every_file_has_a_floor() -> None:
    floors = read_floors()
    homeless = sorted({room_of(name) for name in modules()} - set(floors))
    assert not homeless, f"add these to the floor table in docs/architecture.md: {homeless}"


def test_files_import_only_lower_floors_or_their_own_folder() -> None:
    floors = read_floors()
    wrong = []
    for module in modules().values():
        own = room_of(module.name)
        for imported in imports(module):
            target = room_of(imported.target)
            both_folders = own.endswith("/") and target.endswith("/")
            allowed = (
                own == INDEX
                or target == own
                or floors[target] < floors[own]
                or (floors[target] == floors[own] and not both_folders and target != INDEX)
            )
            if not allowed:
                wrong.append(
                    f"{module.shown}:{imported.line} ({own} on floor {floors[own]}) "
                    f"imports {imported.target} ({target} on floor {floors[target]})"
                )
    assert not wrong, "imports that point up or sideways:\n  " + "\n  ".join(wrong)


def test_no_import_runs_in_a_circle() -> None:
    graph = {module.name: {found.target for found in imports(module)} - {module.name} for module in modules().values()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))
