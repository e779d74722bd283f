"""YAML text to plain values, each with the line it came from; hostile input is refused before it grows.

The safe loader only (no Python objects), at most 1 MiB, 64 levels deep and 100,000 values after aliases are
expanded; a key written twice is an error. Numbers follow YAML 1.2, so `3e-4` is a number.
Source: https://yaml.org/spec/1.2.2/
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import yaml

from deepseek.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000

Location: TypeAlias = tuple[str | int, ...]
Plain: TypeAlias = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


@dataclass
class YamlSource:
    """Plain values read from YAML, and for each its line (1-based), by its path of keys and indices."""

    name: str
    value: Plain = None
    lines: dict[Location, int] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """Return `file:line` of the value at `location`, or of its nearest parent that has a line."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return f"{self.name}:{self.lines[location[:end]]}"
        return self.name


_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {_INT, _FLOAT, _DATE}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""What plain text stands for: true, false and null as the library has them; no dates, as in JSON; numbers see below."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the numbers of YAML 1.2: `3e-4` is one, `010` is ten, `1:30` is text."""

    yaml_implicit_resolvers = {first: list(entries) for first, entries in _RESOLVERS.items()}


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes text that the loader would take for something else."""

    yaml_implicit_resolvers = {first: list(entries) for first, entries in _RESOLVERS.items()}

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if "\x85" in data else None  # a line break to YAML 1.1, which a reader may change
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(_INT, re.compile(r"^(?:[-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+)$", re.A), list("-+0123456789"))
    _side.add_implicit_resolver(
        _FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", re.A
        ),
        list("-+.0123456789"),
    )


def read_yaml(path: str | Path) -> YamlSource:
    """Read a YAML file. Raises ConfigError naming file and line for whatever is wrong with it."""
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", fix="check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder", wanted="a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read", found=error.strerror) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is too large", found="over 1 MiB", wanted="at most 1 MiB of YAML")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line} is not UTF-8", fix="save the file as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "<text>") -> YamlSource:
    """Parse YAML text; `name` stands for the file in errors. Raises ConfigError."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        source = YamlSource(name)
        if node is not None:
            source.value = _Builder(loader, source).build(node, ())
        return source
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line} is not valid YAML", found=error.problem) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML", found=str(error).splitlines()[0]) from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply", wanted=f"at most {MAX_DEPTH} levels") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(value: Plain) -> str:
    """Return YAML text that `parse_yaml` reads back as the same plain value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Builder:
    """Builds plain values out of YAML nodes, counting them as aliases are expanded."""

    _scalars = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))

    def __init__(self, loader: _Loader, source: YamlSource) -> None:
        self.loader = loader
        self.source = source
        self.count = 0

    def build(self, node: yaml.Node, location: Location) -> Plain:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(
                f"{self.source.name}:{line} expands to too many values", wanted=f"at most {MAX_VALUES} after aliases"
            )
        if len(location) > MAX_DEPTH:
            raise ConfigError(f"{self.source.name}:{line} is nested too deeply", wanted=f"at most {MAX_DEPTH} levels")
        self.source.lines.setdefault(location, line)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return {key: self.build(value, (*location, key)) for key, value in self._entries(node, location)}
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.build(item, (*location, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in self._scalars:
            return self._scalar(node, line)
        raise ConfigError(
            f"{self.source.name}:{line} holds a value that is not plain",
            found=node.tag.replace("tag:yaml.org,2002:", "!!"),
            wanted="text, numbers, true/false, null, lists and mappings",
        )

    def _entries(self, node: yaml.MappingNode, location: Location) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{self.source.name}:{line} has a key that is not text")
            key = str(key_node.value)
            if key in seen:
                raise ConfigError(f"{self.source.name}:{line} has the key '{key}' twice", fix="remove one of the two")
            seen.add(key)
            self.source.lines[(*location, key)] = line
            yield key, value_node

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Plain:
        try:
            if node.tag == _INT:
                return int(node.value, 0 if node.value[1:2] in {"o", "x"} else 10)
            value: Plain = self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError):  # the library's own constructors on `!!int ""`, `!!bool x`
            raise ConfigError(
                f"{self.source.name}:{line} has a value that can't be read", found=f"{node.tag} {node.value[:80]!r}"
            ) from None
        return value
