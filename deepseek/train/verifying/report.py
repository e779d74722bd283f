"""What `verify_trainer` found: a row for each check, as a table and as plain values.

Not here: the checks (`verify_*.py` beside this file).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "explained", "warning", "info", "skipped"]
"""`explained`: it differs, for a reason that lies in the model; `info`: a fact, no judgement."""


@dataclass(frozen=True)
class Finding:
    """One check: what was measured, the most it may be, and what it means."""

    name: str
    status: Status
    detail: str
    value: float | None = None
    """The number found; what it is, `detail` says. None where there is no number."""
    limit: float | None = None
    """The most `value` may be."""
    seconds: float = 0.0


@dataclass
class VerifyReport:
    """All findings, in the order they were made."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [finding.name for finding in self.findings if finding.status == "fail"]

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of a check. Raises KeyError for a check that was not made."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a number that is not finite becomes text."""
        rows = [
            {key: _plain(value) for key, value in asdict(finding).items() if value is not None}
            for finding in self.findings
        ]
        return {"ok": self.ok, "failed": self.failed, "checks": rows}

    def table(self) -> str:
        """Return the table to print: check, verdict, number and limit, then what it means."""
        return "\n".join(line for finding in self.findings for line in _lines(finding))


def _lines(finding: Finding) -> Iterable[str]:
    number = "" if finding.value is None else f"{finding.value:.2g}"
    if finding.limit is not None:
        number += f" (at most {finding.limit:.2g})" if finding.limit else " (wanted: 0)"
    first, *rest = finding.detail.splitlines() or [""]
    yield f"{finding.status:<9}  {finding.name:<22}  {number:<26}  {first}".rstrip()
    for line in rest:
        yield f"{'':63}{line}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
