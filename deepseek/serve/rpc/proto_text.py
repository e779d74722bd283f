"""From the text of a .proto file to its descriptor, for the part of proto3 that this package's own files use.

Messages (nested ones, `repeated`, `optional`, `oneof`, `map`) and services. So there is no generated code to keep in
step with one release of protobuf, and the same files make clients in other languages. Not here: imports, enums,
options, extensions; a file that has them is refused.
Source: Protocol Buffers Language Specification (proto3), https://protobuf.dev/reference/protobuf/proto3-spec/
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
        DescriptorProto,
        FieldDescriptorProto,
        FileDescriptorProto,
    )

_TOKEN = re.compile(r'\s+|//[^\n]*|([A-Za-z_][\w.]*|\d+|"[^"\n]*"|[{}=;<>,()])')
_SCALARS = ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")


def parse_proto(name: str, text: str) -> FileDescriptorProto:
    """Return the descriptor of the file `name` with the content `text`.

    Raises ConfigError, with `name:line`, for what this reader does not know.
    """
    return _Reader(name, text).file()


class _Reader:
    """Reads one file, token by token."""

    def __init__(self, name: str, text: str) -> None:
        from google.protobuf import descriptor_pb2  # type: ignore[import-untyped]

        self._pb = descriptor_pb2
        self._name = name
        self._tokens: list[tuple[str, int]] = []
        self._at = 0
        self._types: set[str] = set()
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            line = text.count("\n", 0, position) + 1
            if match is None:
                raise ConfigError("this .proto file can't be read", found=f"{name}:{line}: {text[position]!r}")
            if match.group(1) is not None:
                self._tokens.append((match.group(1), line))
            position = match.end()

    def file(self) -> FileDescriptorProto:
        file = self._pb.FileDescriptorProto(name=self._name, syntax="proto3")
        self._expect("syntax", "=", '"proto3"', ";", "package")
        file.package = self._next()
        self._expect(";")
        while self._at < len(self._tokens):
            if self._take("message"):
                self._message(file.message_type.add(), "." + file.package)
            else:
                self._expect("service")
                service = file.service.add(name=self._next())
                self._block(functools.partial(self._method, service, "." + file.package))
        for message in file.message_type:
            self._resolve(message, f".{file.package}.{message.name}")
        return file

    def _message(self, message: DescriptorProto, scope: str) -> None:
        message.name = self._next()
        scope = f"{scope}.{message.name}"
        self._types.add(scope)
        self._block(lambda: self._member(message, scope))
        for field in message.field:  # the oneof of an optional field comes after all written ones
            if field.proto3_optional:
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name="_" + field.name)

    def _member(self, message: DescriptorProto, scope: str) -> None:
        if self._take("message"):
            self._message(message.nested_type.add(), scope)
        elif self._take("oneof"):
            index = len(message.oneof_decl)
            message.oneof_decl.add(name=self._next())
            self._block(lambda: setattr(self._field(message), "oneof_index", index))
        elif self._take("map"):
            self._map(message, scope)
        elif self._take("repeated"):
            self._field(message).label = self._pb.FieldDescriptorProto.LABEL_REPEATED
        elif self._take("optional"):
            self._field(message).proto3_optional = True
        else:
            self._field(message)

    def _map(self, message: DescriptorProto, scope: str) -> None:
        """Read `map<K, V> name = N;`: a repeated nested message of a key (1) and a value (2)."""
        self._expect("<")
        key = self._next()
        self._expect(",")
        value = self._next()
        self._expect(">")
        name = self._next()
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        self._types.add(f"{scope}.{entry.name}")
        self._typed(entry, key, "key", 1)
        self._typed(entry, value, "value", 2)
        field = self._typed(message, entry.name, name, self._number())
        field.label = self._pb.FieldDescriptorProto.LABEL_REPEATED

    def _field(self, message: DescriptorProto) -> FieldDescriptorProto:
        kind, name = self._next(), self._next()
        return self._typed(message, kind, name, self._number())

    def _typed(self, message: DescriptorProto, kind: str, name: str, number: int) -> FieldDescriptorProto:
        words = name.split("_")
        field = message.field.add(name=name, number=number, json_name=words[0] + "".join(map(str.title, words[1:])))
        field.label = self._pb.FieldDescriptorProto.LABEL_OPTIONAL
        if kind in _SCALARS:
            field.type = getattr(self._pb.FieldDescriptorProto, "TYPE_" + kind.upper())
        else:
            field.type = self._pb.FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = kind
        return field

    def _number(self) -> int:
        self._expect("=")
        number = self._next()
        self._expect(";")
        if not number.isdecimal():
            raise self._wrong(number, "a field number")
        return int(number)

    def _method(self, service: object, package: str) -> None:
        self._expect("rpc")
        method = service.method.add(name=self._next())  # type: ignore[attr-defined]
        self._expect("(")
        if self._take("stream"):
            method.client_streaming = True
        method.input_type = f"{package}.{self._next()}"
        self._expect(")", "returns", "(")
        if self._take("stream"):
            method.server_streaming = True
        method.output_type = f"{package}.{self._next()}"
        self._expect(")", ";")

    def _resolve(self, message: DescriptorProto, scope: str) -> None:
        """Give each field of a message type that type's full name: the nearest one outward."""
        for nested in message.nested_type:
            self._resolve(nested, f"{scope}.{nested.name}")
        for field in message.field:
            if not field.type_name:
                continue
            outer = scope
            while outer and f"{outer}.{field.type_name}" not in self._types:
                outer = outer.rpartition(".")[0]
            if not outer:
                raise ConfigError("this .proto file names an unknown type", found=f"{self._name}: {field.type_name}")
            field.type_name = f"{outer}.{field.type_name}"

    def _block(self, member: Callable[[], object]) -> None:
        self._expect("{")
        while not self._take("}"):
            member()

    def _next(self) -> str:
        if self._at == len(self._tokens):
            raise ConfigError("this .proto file ends too early", found=self._name)
        token, _ = self._tokens[self._at]
        self._at += 1
        return token

    def _take(self, token: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at][0] == token:
            self._at += 1
            return True
        return False

    def _expect(self, *tokens: str) -> None:
        for token in tokens:
            found = self._next()
            if found != token:
                raise self._wrong(found, token)

    def _wrong(self, found: str, wanted: str) -> ConfigError:
        line = self._tokens[self._at - 1][1]
        return ConfigError("this .proto file can't be read", found=f"{self._name}:{line}: {found}", wanted=wanted)
