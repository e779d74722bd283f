"""`import deepseek` loads next to nothing. Counted in modules, not in seconds: that holds on every machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.contract.source_tree import ROOT

pytestmark = pytest.mark.check

MOST_MODULES = 150


def loaded_after(statement: str) -> set[str]:
    """Return the names of all modules that a fresh interpreter holds after `statement`."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", cwd=ROOT, check=True)
    return set(json.loads(child.stdout))


def test_import_loads_no_torch_numpy_or_pydantic() -> None:
    loaded = loaded_after("import deepseek")
    assert "deepseek" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "rich", "typer", "tokenizers"}
    assert len(loaded) <= MOST_MODULES, f"{len(loaded)} modules: {sorted(loaded - loaded_after('pass'))}"


def test_version_needs_no_torch() -> None:
    assert "torch" not in loaded_after("from deepseek import __version__")
