"""One description of a manifest that becomes plain YAML or a Helm template, so that the two can't drift apart.

A tree is made of dicts, lists and plain values, and of a few holes: `Value` (a value of the chart), `Text` (the same as
text), `Plus` (a sum), `Named` (the release's name), `Namespace`, and `When` (present while a value is set).
`resolve` fills the holes, `template` writes them in Helm's words. Only these are used: `if`, `end`, `toJson`, `quote`,
`int`, `add`, `.Values`, `.Release.Name`, `.Release.Namespace`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

Tree: TypeAlias = Any
"""Dicts, lists, plain values and holes."""


class Value(NamedTuple):
    """A value of the chart, by its dotted path."""

    path: str


class Text(NamedTuple):
    """A value of the chart as text: `8080` becomes `"8080"`."""

    path: str
    whole: bool = True
    """Whether it is a whole number (which Helm reads as a float)."""


class Plus(NamedTuple):
    """A whole number of the chart and a constant."""

    path: str
    more: int


class Named(NamedTuple):
    """The release's name with something behind it and before it."""

    suffix: str = ""
    before: str = ""


class Namespace(NamedTuple):
    """The namespace the release lies in."""


class When(NamedTuple):
    """An entry that is there only while a value of the chart is set: not null, 0, false or empty."""

    path: str
    tree: Tree


class Setting(NamedTuple):
    """What fills the holes."""

    name: str
    namespace: str
    values: Mapping[str, Any]

    def at(self, path: str) -> Any:
        """Return the value at a dotted path."""
        found: Any = self.values
        for key in path.split("."):
            found = found[key]
        return found


_ABSENT = object()


def resolve(tree: Tree, setting: Setting) -> Tree:
    """Return the tree without holes: plain values only."""
    found = _resolve(tree, setting)
    return None if found is _ABSENT else found


def _resolve(tree: Tree, setting: Setting) -> Tree:
    match tree:
        case When():
            return _resolve(tree.tree, setting) if setting.at(tree.path) else _ABSENT
        case Value():
            return setting.at(tree.path)
        case Text():
            return str(setting.at(tree.path))
        case Plus():
            return setting.at(tree.path) + tree.more
        case Named():
            return tree.before + setting.name + tree.suffix
        case Namespace():
            return setting.namespace
        case dict():
            pairs = ((key, _resolve(value, setting)) for key, value in tree.items())
            return {key: value for key, value in pairs if value is not _ABSENT}
        case list():
            items = (_resolve(item, setting) for item in tree)
            return [item for item in items if item is not _ABSENT]
    return tree


def template(tree: Tree) -> str:
    """Return the tree as a Helm template."""
    return "\n".join(_lines(tree, "")) + "\n"


def _lines(tree: Tree, indent: str) -> Iterator[str]:
    """Yield the lines of a mapping or a list."""
    match tree:
        case When():
            yield from _guarded(tree.path, _lines(tree.tree, indent), indent)
        case dict():
            for key, value in tree.items():
                if isinstance(value, When):
                    yield from _guarded(value.path, _entry(key, value.tree, indent), indent)
                else:
                    yield from _entry(key, value, indent)
        case list():
            for item in tree:
                if isinstance(item, When):
                    yield from _guarded(item.path, _item(item.tree, indent), indent)
                else:
                    yield from _item(item, indent)


def _guarded(path: str, lines: Iterator[str], indent: str) -> Iterator[str]:
    yield f"{indent}{{{{- if .Values.{path} }}}}"
    yield from lines
    yield f"{indent}{{{{- end }}}}"


def _entry(key: str, value: Tree, indent: str) -> Iterator[str]:
    shown = _scalar(key) if not key.replace("-", "").replace("_", "").isalnum() else key
    if isinstance(value, dict | list) and value:
        yield f"{indent}{shown}:"
        yield from _lines(value, indent + "  ")
    else:
        yield f"{indent}{shown}: {_scalar(value)}"


def _item(item: Tree, indent: str) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        lines = _lines(item, indent + "  ")
        yield f"{indent}- {next(lines).lstrip()}"
        yield from lines
    else:
        yield f"{indent}- {_scalar(item)}"


def _scalar(value: Tree) -> str:
    match value:
        case Value():
            return f"{{{{ .Values.{value.path} | toJson }}}}"
        case Text():
            return f"{{{{ .Values.{value.path} {'| int ' if value.whole else ''}| quote }}}}"
        case Plus():
            return f"{{{{ add (int .Values.{value.path}) {value.more} }}}}"
        case Named():
            return json.dumps(f"{value.before}{{{{ .Release.Name }}}}{value.suffix}")
        case Namespace():
            return '"{{ .Release.Namespace }}"'
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
