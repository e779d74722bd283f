"""Every module can be imported with the core dependencies alone, in a process where all other packages are blocked."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import pytest

from tests.contract.source_tree import ROOT, modules

pytestmark = pytest.mark.check

CHILD = """
import importlib, json, sys, traceback

blocked, names = json.load(sys.stdin)

class OnlyCore:
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {fullname} is not a core dependency", name=fullname)

sys.meta_path.insert(0, OnlyCore)
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(f"{name}:\\n{traceback.format_exc(limit=-3)}")
print(json.dumps({"failed": failed, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def normal(name: str) -> str:
    """Return a distribution's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def core_distributions() -> set[str]:
    """Return the core dependencies that are installed here, with all that they need in turn."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found: set[str] = set()
    waiting = [re.match(r"[\w.-]+", requirement)[0] for requirement in declared]  # type: ignore[index]
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        waiting += [re.match(r"[\w.-]+", need)[0] for need in requires if "extra ==" not in need]  # type: ignore[index]
    return found


def test_every_module_imports_without_optional_packages() -> None:
    core = core_distributions()
    providers = importlib.metadata.packages_distributions()
    optional = {top for top, names in providers.items() if not any(normal(name) in core for name in names)}
    assert "pytest" in optional
    names = [name for name in modules() if not name.endswith("__main__")]
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD],
        input=json.dumps([sorted(optional - {"deepseek"}), names]),
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout)
    assert not result["failed"], "\n".join(result["failed"])
    assert "torch" in result["loaded"], "the child did not import the package's modules for real"
    assert not optional & set(result["loaded"]) - {"deepseek", "_distutils_hack"}
