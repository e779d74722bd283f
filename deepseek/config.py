"""Strict, frozen, typed configs; YAML is only their spelling.

A config is a pydantic model: unknown keys and wrong types are refused with `file:line` and the nearest known key,
values can't change after creation, and every field's docstring is what `deepseek explain KEY` prints.
Not here: what a setting does.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from deepseek.errors import ConfigError, did_you_mean
from deepseek.yaml_source import Location, YamlSource, dump_yaml, parse_yaml, read_yaml

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["Config", "explain", "parse_yaml", "read_yaml"]


class _RaisesConfigError(ModelMetaclass):
    """Makes `SomeConfig(...)` raise ConfigError; sections inside are validated without it, so paths stay whole."""

    def __call__(cls, /, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _config_error(cast(type[BaseModel], cls), error, YamlSource(cls.__name__)) from None


class Config(BaseModel, metaclass=_RaisesConfigError):
    """Base of all configs: unknown keys refused, types strict, values frozen.

    Raises ConfigError naming the key, the value found, and the nearest known name.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    assignable: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be set after creation; all others need `replace`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.assignable:
            checked = self.replace(**{name: value})
            self.__dict__[name] = getattr(checked, name)
            self.__pydantic_fields_set__.add(name)
            return
        if name not in type(self).model_fields:
            raise AttributeError(
                f"{type(self).__name__} has no field '{name}'; {did_you_mean(name, type(self).model_fields)}"
            )
        raise ConfigError(
            f"{type(self).__name__} is frozen; '{name}' can't be set",
            fix=f"make a changed copy: config.replace({name}={value!r})",
        )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed, checked like a new one."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return type(self)(**{**values, **changes})

    @classmethod
    def from_source(cls, source: YamlSource) -> Self:
        """Build from parsed YAML; errors name `file:line`. Raises ConfigError."""
        if not isinstance(source.value, dict):
            raise ConfigError(
                f"{source.name} is empty or not a mapping", wanted=f"keys of {cls.__name__}: {_keys(cls)}"
            )
        try:
            return cls.model_validate(source.value)
        except ValidationError as error:
            raise _config_error(cls, error, source) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Build from a YAML file. Raises ConfigError."""
        return cls.from_source(read_yaml(path))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every default written out, as JSON and YAML have them."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return YAML that `from_source` reads back to an equal config."""
        return dump_yaml(self.to_dict())


def explain(root: type[BaseModel], key: str) -> str:
    """Describe the setting at the dotted path `key` below `root`: type, default, limits and meaning.

    For a section, lists its settings. Raises ConfigError with the nearest key.
    """
    section: type[BaseModel] = root
    walked: list[str] = []
    parts = [part for part in key.split(".") if part]
    for index, part in enumerate(parts):
        if part not in section.model_fields:
            where = ".".join(walked) or "the top level"
            raise ConfigError(f"no setting '{part}' in {where}", fix=did_you_mean(part, section.model_fields))
        field = section.model_fields[part]
        walked.append(part)
        inner = _section_of(field)
        if inner is None:
            if index + 1 < len(parts):
                raise ConfigError(
                    f"'{'.'.join(walked)}' is a value, not a section", fix=f"deepseek explain {'.'.join(walked)}"
                )
            return f"{'.'.join(walked)}: {_facts(field)}\n  {_meaning(field)}"
        section = inner
    title = ".".join(walked) or root.__name__
    lines = [f"{title}: {_first_paragraph(section.__doc__)}"]
    for name, field in section.model_fields.items():
        lines.append(
            f"  {name}: {_type_name(field.annotation)}{_default(field)}{_limits(field)}\n      {_meaning(field)}"
        )
    return "\n".join(lines)


def _keys(cls: type[BaseModel]) -> str:
    return ", ".join(cls.model_fields)


def _config_error(cls: type[BaseModel], error: ValidationError, source: YamlSource) -> ConfigError:
    details = error.errors(include_url=False)
    problems = [_describe(cls, detail, source) for detail in details]
    first = details[0]
    fix = None
    if first["type"] == "extra_forbidden":
        owner = _owner(cls, first["loc"])
        fix = did_you_mean(str(first["loc"][-1]), owner.model_fields) if owner else None
    elif first["type"] == "missing":
        fix = f"add '{first['loc'][-1]}'"
    return ConfigError("\n".join(problems), fix=fix)


def _describe(cls: type[BaseModel], detail: ErrorDetails, source: YamlSource) -> str:
    location: Location = tuple(part for part in detail["loc"] if not _is_tag(part))
    key = ".".join(str(part) for part in location)
    where = source.where(location)
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'"
    if detail["type"] == "missing":
        return f"{where}: '{key}' is missing"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = repr(detail["input"])
    shown = found if len(found) <= 80 else found[:77] + "..."
    if detail["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{message}"
    return f"{where}: '{key}' is {shown}; wanted {message}"


def _is_tag(part: str | int) -> bool:
    """Return whether pydantic put a union member's name (`float`, `list[str]`) in place of a key."""
    return isinstance(part, str) and ("[" in part or part in {"int", "float", "str", "bool", "none"})


def _owner(cls: type[BaseModel], location: Location) -> type[BaseModel] | None:
    section: type[BaseModel] = cls
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        inner = _section_of(field) if field else None
        if inner is None:
            return None
        section = inner
    return section


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    for candidate in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in typing.get_args(annotation))
    if origin is typing.Literal:
        return " | ".join(repr(arg) if not isinstance(arg, str) else arg for arg in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if annotation is type(None):
        return "null"
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_type_name(arg) for arg in typing.get_args(annotation))}"
    plain = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = str(annotation.__name__)
    return plain.get(name, name)


def _facts(field: FieldInfo) -> str:
    return f"{_type_name(field.annotation)}{_default(field)}{_limits(field)}"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    if default is PydanticUndefined:
        return ", required"
    if isinstance(default, BaseModel):
        return ""
    if default is None:
        return ", default null"
    return f", default {str(default).lower() if isinstance(default, bool) else default}"


def _limits(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "at least", "max_length": "at most"}
    found = [f"{signs[name]} {getattr(item, name)}" for item in field.metadata for name in signs if hasattr(item, name)]
    return f", {' and '.join(found)}" if found else ""


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _first_paragraph(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n")[0].split())
