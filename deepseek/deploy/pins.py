"""What an image installs: this very framework, and the versions that are here, where the bundle was made and tried.

Read from a checkout's `pyproject.toml` or from what is installed (Python packaging's core metadata); an index is never
asked for our own package, since its name there may be somebody else's. Not here: writing the build context.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from deepseek import __version__

PACKAGE = "deepseek-framework"
_ROOT = Path(__file__).parents[2]
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_AND_EXTRA = re.compile(r"\s*(?:and\s+)?extra\s*==\s*['\"][^'\"]+['\"]")
_PROJECT = (
    "[build-system]",
    'requires = ["setuptools>=77"]',
    'build-backend = "setuptools.build_meta"',
    "[tool.setuptools]",
    "include-package-data = false",
    "[tool.setuptools.packages.find]",
    'include = ["deepseek*"]',
    "[tool.setuptools.package-data]",
    '"*" = ["**/*"]',
    "[project.scripts]",
    'deepseek-serve = "deepseek.cli.serve:main"',
    "[project]",
    f'name = "{PACKAGE}"',
    f'version = "{__version__}"',
    'requires-python = ">=3.11"',
)


def source_root() -> Path | None:
    """Return the checkout that this package runs from, None where it was installed."""
    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _ROOT if project.get("project", {}).get("name") == PACKAGE else None


def pinned(extras: Iterable[str]) -> list[str]:
    """Return `name==version` lines for everything that our package with `extras` needs and that is installed here.

    A local part (`2.13.0+cpu`) is left out: which build of torch an image gets is said by its index.
    """
    found: dict[str, str] = {}
    waiting = list(_own_requirements(set(extras)))
    seen: set[str] = set()
    while waiting:
        line = waiting.pop()
        match = _NAME.match(line)
        if match is None or line in seen:
            continue
        seen.add(line)
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # for another system or another version of Python
        found[name] = installed.version.partition("+")[0]
        wanted = {extra.strip() for extra in (match[2] or "").split(",")}
        waiting += _of_extras(installed.requires or (), wanted)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def project_file() -> str:
    """Return a `pyproject.toml` that builds this package: the checkout's, or one made of what is installed."""
    root = source_root()
    if root is not None:
        return (root / "pyproject.toml").read_text(encoding="utf-8")
    return project_of(distribution(PACKAGE).requires or ())


def project_of(requires: Iterable[str]) -> str:
    """Return a `pyproject.toml` with these requirements, given as core metadata has them."""
    plain: list[str] = []
    optional: dict[str, list[str]] = {}
    for line in requires:
        named = _EXTRA.search(line.partition(";")[2])
        if named is None:
            plain.append(line)
        else:
            requirement, _, marker = line.partition(";")
            rest = _AND_EXTRA.sub("", marker).strip()
            optional.setdefault(named[1], []).append(f"{requirement.strip()}; {rest}" if rest else requirement.strip())
    lists = [f"{json.dumps(extra)} = {json.dumps(lines)}" for extra, lines in sorted(optional.items())]
    return "\n".join([*_PROJECT, f"dependencies = {json.dumps(plain)}", "[project.optional-dependencies]", *lists, ""])


def _own_requirements(extras: set[str]) -> list[str]:
    project: dict[str, Any] = tomllib.loads(project_file())["project"]
    optional: dict[str, list[str]] = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for extra in sorted(extras) for line in optional.get(extra, ()))]


def _of_extras(lines: Iterable[str], extras: set[str]) -> list[str]:
    """Return the requirements without an extra, and those of `extras`."""
    kept = []
    for line in lines:
        needed = _EXTRA.search(line.partition(";")[2])
        if needed is None or needed[1] in extras:
            kept.append(line)
    return kept
