"""A page of a search alone, for bundles that are in no run folder: the compression part of the run report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.files import write_text
from deepseek.lazy import require
from deepseek.report.page import page
from deepseek.report.run_folder import Run, Section


def render_front(report: Mapping[str, Any], path: str | Path, name: str | None = None) -> Path:
    """Write what a search found (`SearchReport.to_dict`) as one HTML file with its picture inside; return its path.

    Raises MissingExtraError without matplotlib, StorageError where the disk refuses.
    """
    require("matplotlib", "report")
    target = Path(path)
    title = name or target.resolve().parent.name
    write_text(target, page(Run(target.parent, Section({"name": title, "compress": dict(report)}))))
    return target
