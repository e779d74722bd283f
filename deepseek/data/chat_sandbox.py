"""A Jinja environment in which a stranger's chat template can neither reach the machine nor keep it busy.

A safe subset: the sandbox of Jinja, without the filters and text methods that make much out of little, and with a
count of loop turns, calls and characters in place of a clock, so that the same template always gives the same answer.
What goes over a bound, or outside the subset, raises jinja2.exceptions.SecurityError. Not here: chats
(`chat_template`).

Source: https://jinja.palletsprojects.com/en/stable/sandbox/; the names that templates expect are those of
https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
MAX_CHARACTERS = 1 << 26
BEGIN, END = "generation_begins_", "generation_ends_"
"""Variables put out around what the assistant generates; the caller gives them marks."""

_SAFE_FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse round safe select selectattr sort string sum title trim unique upper"
).split()
_SAFE_TEXT_METHODS = frozenset(
    "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join lower lstrip partition "
    "removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith strip title "
    "upper".split()
)


@dataclass
class _Work:
    """What a rendering may still do."""

    steps: int = MAX_STEPS
    characters: int = MAX_CHARACTERS

    def spend(self, characters: int) -> None:
        self.steps -= 1
        self.characters -= characters
        if self.steps < 0 or self.characters < 0:
            raise SecurityError(f"more than {MAX_STEPS} steps or {MAX_CHARACTERS} characters")


_work: ContextVar[_Work | None] = ContextVar("work of the rendering", default=None)


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """Return the rendered text. Raises jinja2's TemplateError, and whatever the template's own calls raise."""
    token = _work.set(_Work())
    try:
        return template.render(variables)
    finally:
        _work.reset(token)


def compile_template(source: str) -> tuple[Template, bool]:
    """Return the template, and whether it marks what the assistant generates. Raises jinja2's TemplateError."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
    environment.filters = {name: FILTERS[name] for name in _SAFE_FILTERS} | {
        "counted_": _counted,
        "indent": _indent,
        "join": _join,
        "replace": _replace,
        "spent_": _spent,
        "tojson": _to_json,
    }
    environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
    environment.globals |= {"dict": dict, "raise_exception": _raise}
    environment.finalize = _finalize
    token = _work.set(_Work())  # Jinja works constant expressions out while compiling
    try:
        tree = environment.parse(source)
        marks = any(name.name == BEGIN for name in tree.find_all(nodes.Name))
        return environment.from_string(_Counting().visit(tree)), marks
    finally:
        _work.reset(token)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which values can't grow without being counted."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def wrap_str_format(self, value: Any) -> None:
        return None  # text.format is no safe method here: a width in it makes gigabytes

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes):
            return isinstance(obj, str) and attr in _SAFE_TEXT_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and not isinstance(left, int | float)):
            raise SecurityError(f"the operator {operator} of {type(left).__name__} is not available in chat templates")
        if isinstance(left, Sized) or isinstance(right, Sized):
            sizes = [len(side) if isinstance(side, Sized) else int(side) for side in (left, right)]
            _spend(sizes[0] * sizes[1] if operator == "*" else sizes[0] + sizes[1])
        elif operator == "*":
            _check_number(left)
            _check_number(right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (names are free)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and args:
            return _join(args[0], owner)
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            return _replace(owner, *args)
        _spend(len(owner) if isinstance(owner, str) else 0)
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: puts a mark before and after."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in (BEGIN, END))
        return [before, nodes.Scope(body, lineno=line), after]


class _Counting(NodeTransformer):
    """Lets every turn of a loop, every macro and every `~` be counted, with the text they put out."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (the visitor's spelling)
        self.generic_visit(node)
        node.iter = nodes.Filter(
            node.iter, "counted_", [nodes.Const(_static(node))], [], None, None, lineno=node.lineno
        )
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        turn = nodes.Filter(nodes.Const(_static(node)), "spent_", [], [], None, None, lineno=node.lineno)
        node.body = [nodes.Output([turn], lineno=node.lineno), *node.body]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        texts = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        joined: nodes.Expr = texts[0]
        for text in texts[1:]:
            joined = nodes.Add(joined, text, lineno=node.lineno)
        return joined


def _static(node: nodes.Node) -> int:
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def _spend(characters: int) -> None:
    work = _work.get()
    if work is not None:
        work.spend(characters)


def _check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) > 1 << 64:
        raise SecurityError("a number of more than 64 bits")


@pass_context  # or Jinja would work it out once, while compiling
def _counted(context: Context, items: Iterable[Any], characters: int) -> Iterator[Any]:
    for item in items:
        _spend(characters)
        yield item


@pass_context
def _spent(context: Context, characters: int) -> str:
    _spend(characters)
    return ""


def _finalize(value: Any) -> Any:
    if isinstance(value, str):
        _spend(len(value))
        return value
    text = str(value)
    _spend(len(text))
    return text


def _join(items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    found = [str(item.get(attribute, "") if attribute is not None else item) for item in items]
    _spend(sum(map(len, found)) + len(separator) * len(found))
    return str(separator).join(found)


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text = str(text)
    _spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(width, int):
        _spend(max(0, width))
    filled = width if isinstance(width, str) else " " * width
    lines = text.splitlines(keepends=True)
    _spend(len(text) + len(filled) * len(lines))
    return "".join(
        filled + line if (index or first) and (blank or line.strip()) else line for index, line in enumerate(lines)
    )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 64:
        raise SecurityError(f"tojson with indent {indent}")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    _spend(len(text))
    return text


def _raise(message: str) -> None:
    raise TemplateError(message)
