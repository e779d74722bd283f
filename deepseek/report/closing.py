"""The end of the page: the environment, the recipe, and the commands with which to go on from this run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from deepseek.report.html import Html, both, join, safe, tag
from deepseek.report.parts import Part, code, facts
from deepseek.report.run_folder import Run
from deepseek.report.training import of_samples, plain

_KEY = re.compile(r"^(\s*(?:- +)?)([\w.-]+)(:)(?=\s|$)")


def environment(run: Run) -> Part | None:
    """Return the machine and software the run had, as its results list them."""
    rows = [(tag("code", name), plain(value)) for name, value in _flat(run.results.section("environment"))]
    body = facts(rows)
    return Part("environment", both("Environment", "环境"), body) if body else None


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def recipe(run: Run) -> Part | None:
    """Return the recipe as it was run."""
    if run.recipe is None:
        return None
    lines = join([_highlighted(line) for line in run.recipe.splitlines()], "\n")
    return Part("recipe", both("Recipe", "配方"), code(lines, kind="file"))


def _highlighted(line: str) -> Html:
    """Return a line of YAML with its key or its comment in a colour of its own."""
    if line.lstrip().startswith("#"):
        return tag("span", line, class_="comment")
    match = _KEY.match(line)
    if match is None:
        return safe(line)
    return join([match[1], tag("span", match[2], class_="yaml-key"), line[match.start(3) :]])


def commands(run: Run) -> list[tuple[Html, str]]:
    """Return what can be done with what the run left: words and a command for a POSIX shell, paths quoted."""
    found: list[tuple[Html, str]] = []
    for path in sorted(run.folder.glob("bundle*")):
        if path.is_dir() and ".tmp-" not in path.name:
            words = both(f"Serve the {path.name} and try it in the browser", f"启动 {path.name} 服务，在浏览器里试用")
            command = f"deepseek serve {_quoted(path)}"
            if of_samples(run):
                words = both(f"Measure the {path.name} on other data", f"在其他数据上测量 {path.name}")
                command = f"deepseek evaluate {_quoted(path)} --data PATH"
            found.append((words, command))
    if (run.folder / "checkpoints").is_dir():
        words = both("Continue training from the last checkpoint", "从最近的检查点继续训练")
        found.append((words, f"deepseek train --resume {_quoted(run.folder)}"))
    if run.recipe is not None:
        words = both("Walk the whole road again", "重新走完整个流程")
        found.append((words, f"deepseek run {_quoted(run.folder / 'recipe.yaml')}"))
    return found


def _quoted(path: Path) -> str:
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def how_to_go_on(run: Run) -> Part | None:
    """Return the commands to go on with."""
    found = commands(run)
    if not found:
        return None
    body = join([join([tag("p", words, class_="step"), code(command, kind="command")]) for words, command in found])
    return Part("next", both("How to go on", "下一步"), body)
