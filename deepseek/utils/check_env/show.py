"""Prints findings: a table at a terminal, plain lines into a pipe, JSON for programs. At most 80 columns wide."""

from __future__ import annotations

import dataclasses
import importlib.util
import json as json_module
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TextIO

from deepseek.utils.check_env.finding import Finding

WIDTH = 80
FORMAT_VERSION = 1
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def show(findings: Sequence[Finding], out: TextIO, *, json: bool) -> None:
    """Print findings to `out` in the form that suits it."""
    if json:
        out.write(as_json(findings) + "\n")
    elif out.isatty() and importlib.util.find_spec("rich") is not None:
        _table(findings, out)
    else:
        _write(as_text(findings) + "\n", out)


def as_json(findings: Sequence[Finding]) -> str:
    """Return findings as JSON, ASCII only, so that no terminal's encoding matters."""
    counts: Counter[str] = Counter(finding.status for finding in findings)
    value = {
        "format_version": FORMAT_VERSION,
        "exit_code": int(counts["problem"] > 0),
        "summary": {status: counts[status] for status in _COLOURS},
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    return json_module.dumps(value, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """Return findings as plain text: one line each, then what to mend."""
    lines = [f"{finding.status:8} {finding.area:9} {finding.name}: {finding.found}" for finding in findings]
    return "\n".join([*lines, "", *_advice(findings), summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """Return one line that counts the findings."""
    counts: Counter[str] = Counter(finding.status for finding in findings)
    return f"{counts['ok']} ok, {counts['warning']} warning(s), {counts['problem']} problem(s)"


def _advice(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield, for each finding that is not ok and each optional package, why it matters and the command.

    Commands stay on one line, however long, so that they can be copied.
    """
    for finding in findings:
        if finding.status != "ok":
            yield from textwrap.wrap(f"{finding.status}: {finding.name}: {finding.why}", WIDTH)
            yield f"    {finding.fix}"
    absent = [finding for finding in findings if finding.status == "ok" and finding.fix]
    if absent:
        yield "optional:"
        yield from (f"    {finding.fix}" for finding in absent)
    if absent or any(finding.status != "ok" for finding in findings):
        yield ""


def _table(findings: Sequence[Finding], out: TextIO) -> None:
    from rich.console import Console  # here, so that a machine without rich still gets its findings
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, width=min(console.width, WIDTH))
    for width in (8, 7, 15, None):
        table.add_column(width=width, overflow="fold")
    area = ""
    for finding in findings:
        shown, area = (finding.area if finding.area != area else ""), finding.area
        status = Text(finding.status, style=_COLOURS[finding.status])
        table.add_row(Text(shown, style="bold"), status, Text(finding.name), Text(finding.found))
    console.print(table)
    console.print()
    for line in _advice(findings):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(summary(findings), style="bold"))


def _write(text: str, out: TextIO) -> None:
    """Write text where `out` may not know every character of it."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, errors="replace").decode(encoding))
