"""Renders the part of Helm's template language that `deepseek.deploy.tree` writes; there is no helm to install here.

`if .Values.x`, `end`, `.Values.x | toJson`, `| quote`, `| int | quote`, `add (int .Values.x) n`, `.Release.Name`,
`.Release.Namespace`, and `{{-`, which takes the white space before it away. Anything else is an error.
Sources: Go's text/template, Helm's template guide.
"""

from __future__ import annotations

import json
import re


def render(text: str, values: dict, name: str, namespace: str) -> str:
    """Return the template filled."""

    def at(path: str):
        found = values
        for key in path.split("."):
            found = found[key]
        return found

    out: list[str] = []
    shown = [True]
    end = 0
    for match in re.finditer(r"\{\{(-?) (.*?) \}\}", text):
        before = text[end : match.start()]
        out.append((before.rstrip() if match[1] else before) if all(shown) else "")
        end = match.end()
        action = match[2]
        if found := re.fullmatch(r"if \.Values\.([\w.]+)", action):
            shown.append(bool(at(found[1])))
            continue
        if action == "end":
            shown.pop()
            continue
        if found := re.fullmatch(r"\.Values\.([\w.]+) \| toJson", action):
            value = json.dumps(at(found[1]))
        elif found := re.fullmatch(r"\.Values\.([\w.]+) \| int \| quote", action):
            value = f'"{int(at(found[1]))}"'
        elif found := re.fullmatch(r"\.Values\.([\w.]+) \| quote", action):
            value = json.dumps(at(found[1]))
        elif found := re.fullmatch(r"add \(int \.Values\.([\w.]+)\) (\d+)", action):
            value = str(int(at(found[1])) + int(found[2]))
        else:
            value = {".Release.Name": name, ".Release.Namespace": namespace}[action]
        out.append(value if all(shown) else "")
    assert shown == [True], "an if without its end"
    tail = text[end:]
    assert "{{" not in tail
    return "".join(out) + tail
