"""The names of series that a PromQL query reads. Source: the query language's description, prometheus.io/docs.

A small reader, not an evaluator: it knows strings, numbers, label matchers, groupings and functions, which is all that
the queries of our dashboards and alerts have.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKENS = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
      |(?P<duration>\[[^\]]*\])
      |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:ms|[smhdwy])?(?:\d+(?:ms|[smhdwy]))*)
      |(?P<variable>\$\{?[A-Za-z_]\w*\}?)
      |(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
      |(?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){},@])""",
    re.VERBOSE,
)
_GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_CALLED = frozenset({"(", "by", "without"})
"""What follows a function or an aggregation, and never a series."""
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"})


class Selected(NamedTuple):
    """One selector of a query: the series' name, and the labels that it matches on."""

    name: str
    labels: tuple[str, ...]


def selectors(query: str) -> list[Selected]:
    """Return the selectors of a query. Raises ValueError for text that is no query."""
    tokens = _tokens(query)
    found: list[Selected] = []
    place = 0
    while place < len(tokens):
        kind, text = tokens[place]
        following = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        if kind == "name" and text.lower() in _GROUPING and following == "(":
            place = _closing(tokens, place + 1, "(", ")")
        elif kind == "name" and following not in _CALLED and text.lower() not in _WORDS | _GROUPING:
            end = _closing(tokens, place + 1, "{", "}") if following == "{" else place
            inside = tokens[place + 1 : end]
            labels = [
                word
                for (what, word), (_, sign) in zip(inside, inside[1:], strict=False)
                if what == "name" and sign in ("=", "!=", "=~", "!~")
            ]
            found.append(Selected(text, tuple(labels)))
            place = end
        place += 1
    return found


def grouped_labels(query: str) -> set[str]:
    """Return the labels that a query groups or joins by, `le` (a histogram's) not among them."""
    tokens = _tokens(query)
    labels: set[str] = set()
    for place, (kind, text) in enumerate(tokens[:-1]):
        if kind == "name" and text.lower() in _GROUPING and tokens[place + 1][1] == "(":
            end = _closing(tokens, place + 1, "(", ")")
            labels |= {word for what, word in tokens[place + 2 : end] if what == "name"}
    return labels - {"le"}


def _tokens(query: str) -> list[tuple[str, str]]:
    tokens, place = [], 0
    while place < len(query):
        match = _TOKENS.match(query, place)
        if match is None:
            raise ValueError(f"no PromQL at {query[place : place + 20]!r}")
        if match.lastgroup != "space":
            tokens.append((str(match.lastgroup), match.group()))
        place = match.end()
    depth = 0
    for _, text in tokens:
        depth += (text in ("(", "{")) - (text in (")", "}"))
        if depth < 0:
            raise ValueError(f"a bracket too many in {query!r}")
    if depth:
        raise ValueError(f"a bracket is missing in {query!r}")
    return tokens


def _closing(tokens: list[tuple[str, str]], start: int, opens: str, closes: str) -> int:
    depth = 0
    for place in range(start, len(tokens)):
        depth += (tokens[place][1] == opens) - (tokens[place][1] == closes)
        if not depth:
            return place
    raise ValueError("a bracket is missing")
