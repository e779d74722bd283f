"""The package's source as the contract tests read it: modules, imports, public names and sizes, by `ast` alone.

Nothing of the package is imported here.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deepseek"


@dataclass(frozen=True)
class Module:
    """One file of the package: its dotted name and its path."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))

    @property
    def shown(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=self.shown)


@dataclass(frozen=True)
class Import:
    """One import statement's target inside the package, as far as the statement spells it."""

    target: str
    line: int


@functools.cache
def modules() -> dict[str, Module]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path)
    return found


def imports(module: Module) -> Iterator[Import]:
    """Yield every import of a module of the package, those inside functions and TYPE_CHECKING blocks too.

    `from deepseek.x import y` counts as `deepseek.x.y` where that is a module, else as `deepseek.x`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_ours(alias.name):
                    yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(module, node)
            if not _is_ours(origin):
                continue
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                if inner in modules():
                    yield Import(inner, node.lineno)
                elif inner != "deepseek.__version__":  # a constant that is there before anything is imported
                    yield Import(origin, node.lineno)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == "deepseek"


def _origin(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
    return ".".join([*base, *([node.module] if node.module else [])])


def public_names(module: Module) -> list[str]:
    """Return the names that users may import from a module: its `__all__`, or what it defines and lists lazily."""
    listed = _assigned(module, "__all__")
    if isinstance(listed, ast.List) and all(isinstance(item, ast.Constant) for item in listed.elts):
        return sorted(str(item.value) for item in listed.elts if isinstance(item, ast.Constant))
    names = set(_lazy_table(module))
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return sorted(name for name in names if not name.startswith("_"))


def _assigned(module: Module, name: str) -> ast.expr | None:
    for node in module.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value  # type: ignore[union-attr]
    return None


def _lazy_table(module: Module) -> list[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy_names":
            table: ast.expr | None = node.args[1] if len(node.args) > 1 else None
            if isinstance(table, ast.Name):
                table = _assigned(module, table.id)
            if isinstance(table, ast.Dict):
                return [str(key.value) for key in table.keys if isinstance(key, ast.Constant)]
    return []


@dataclass(frozen=True, order=True)
class Size:
    """How many lines a file or function has, and where it is."""

    lines: int
    where: str


def file_sizes() -> list[Size]:
    """Return the files of the package, longest first."""
    return sorted((Size(_lines(module.path), module.shown) for module in modules().values()), reverse=True)


def function_sizes() -> list[Size]:
    """Return the functions and methods of the package, longest first, each counted from `def` to its last line."""
    found = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(Size((node.end_lineno or node.lineno) - node.lineno + 1, f"{module.shown}:{node.name}"))
    return sorted(found, reverse=True)


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
