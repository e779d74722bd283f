"""Names that resolve at first use (PEP 562), so that importing a package costs nothing.

`lazy_names` builds a module's `__getattr__` and `__dir__` from a table `name -> "module:attribute"` and, where
given, a torch module whose names are answered under the same spelling and with the same identity.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

from deepseek.errors import MissingExtraError, did_you_mean

_FIXED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
"""What is looked up once and kept; other values of torch may change and are asked for each time."""


def load(target: str) -> Any:
    """Import `"package.module:attribute"` (or just `"package.module"`) and return what it names."""
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attribute) if attribute else module


_KEPT_OUT = ("openvino_telemetry",)
"""Packages that send to another host that a package was imported, by a process that they fork for it."""


def require(package: str, extra: str | None) -> Any:
    """Import an optional package, or raise MissingExtraError with its install line.

    `extra` is None for a package that no extra of ours brings.
    """
    for name in _KEPT_OUT:
        sys.modules.setdefault(name, cast(Any, None))  # its import fails, which those who import it provide for
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise MissingExtraError(package, extra) from None


def lazy_names(
    module: str, table: Mapping[str, str], fallback: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `(__getattr__, __dir__)` for `module`.

    `table` maps our names to their targets; a name it lacks is looked up in the module `fallback` ("torch.nn").
    A name that neither has raises AttributeError with the nearest known names.
    """

    def __getattr__(name: str) -> Any:
        if name in table:
            value = load(table[name])
        elif name.startswith("__") or fallback is None:
            raise _unknown(name)
        else:
            try:
                value = getattr(importlib.import_module(fallback), name)
            except AttributeError:
                raise _unknown(name) from None
        if name in table or isinstance(value, _FIXED):
            setattr(sys.modules[module], name, value)
        return value

    def __dir__() -> list[str]:
        names = set(table) | set(vars(sys.modules[module]))
        if fallback is not None:
            names |= set(dir(importlib.import_module(fallback)))
        return sorted(names)

    def _unknown(name: str) -> AttributeError:
        if name.startswith("__"):
            return AttributeError(f"module '{module}' has no attribute '{name}'")
        public = [known for known in __dir__() if not known.startswith("_")]
        return AttributeError(
            f"module '{module}' has no attribute '{name}'; {did_you_mean(name, public)}",
            name=name,
            obj=sys.modules[module],
        )

    return __getattr__, __dir__
