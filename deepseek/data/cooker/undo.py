"""The undo log: one line of JSON for each document that any rule touched, and the way back.

    {"at": 7, "gives": 1, "documents": [{"source": "in.jsonl:9", "record": {...}, "steps": [
        {"rule": "encoding", "action": "change", "reason": "mended", "value": "mojibake", "before": ["..."]}]}]}

`at` says before which line of the output (from 0) the entry stands, `gives` how many lines came of its documents (of
several, where they were joined). `record` is what was read, `before` the texts as the step found them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from deepseek.data.cooker.draft import Record, to_json, with_texts
from deepseek.errors import ConfigError, DataError
from deepseek.files import atomic_path

if TYPE_CHECKING:
    from deepseek.data.cooker.block import Step


class Undone(NamedTuple):
    """A document of an entry."""

    source: str
    record: Record
    steps: Sequence[Step]


def entry(at: int, gives: int, documents: Sequence[Undone], with_text: bool) -> dict[str, Any]:
    """Return a line of the log as plain values."""
    return {
        "at": at,
        "gives": gives,
        "documents": [
            {
                "source": one.source,
                **({"record": one.record} if with_text else {}),
                "steps": [
                    {
                        "rule": step.rule,
                        "action": step.action,
                        "reason": step.reason,
                        "value": step.value,
                        **({"before": list(step.before)} if with_text else {}),
                    }
                    for step in one.steps
                ],
            }
            for one in documents
        ],
    }


def restore(output: str | Path, undo_log: str | Path, target: str | Path, rule: str | None = None) -> int:
    """Write `output` with what was done to it undone to `target`; return how many documents came back.

    Without a rule everything is undone: `target` holds the records that were read, in their order. With one, documents
    that it dropped come back as it found them, and what it changed, split or joined is again as before it: what later
    rules did to these is undone as well, joining with neighbours too. A document that another rule dropped stays away.

    Raises ConfigError for a target that is one of the other two, DataError where output and log don't belong together
    or the log was written without texts, StorageError when the disk refuses.
    """
    output, undo_log, target = Path(output), Path(undo_log), Path(target)
    if target.resolve() in (output.resolve(), undo_log.resolve()):
        raise ConfigError("undo would overwrite what it reads", found=str(target), wanted="another file")
    back = 0
    try:
        with atomic_path(target) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
            with open(output, encoding="utf-8", newline="\n") as lines:
                at = 0
                for values in _entries(undo_log):
                    at += _copy(lines, out, values["at"] - at, output)
                    records = _undone(values, rule, undo_log)
                    at += _copy(lines, out if records is None else None, values["gives"], output)
                    for record in records or ():
                        out.write(to_json(record) + "\n")
                        back += 1
                for line in lines:
                    out.write(line)
    except FileNotFoundError as error:
        raise DataError(
            f"can't read {error.filename}", found=error.strerror, wanted="a cooked file and its log"
        ) from None
    return back


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as log:
        for number, line in enumerate(log, 1):
            try:
                values = json.loads(line)
                fits = values["at"] >= 0 and values["gives"] >= 0 and isinstance(values["documents"], list)
            except (ValueError, KeyError, TypeError, IndexError):
                fits = False
            if not fits:
                raise DataError(f"{path}:{number} is no line of an undo log", found=line[:80])
            yield values


def _copy(lines: IO[str], out: IO[str] | None, count: int, path: Path) -> int:
    """Write the next `count` lines to `out`, or leave them out; return `count`."""
    for _ in range(count):
        line = lines.readline()
        if not line:
            raise DataError(f"{path} is shorter than its undo log says", fix="use the output of the same run")
        if out is not None:
            out.write(line)
    return count


def _undone(values: dict[str, Any], rule: str | None, path: Path) -> list[Record] | None:
    """Return the records an entry gives back, or None where nothing of it is undone."""
    documents = values["documents"]
    if rule is not None and not any(_touched(one, rule) for one in documents):
        return None
    if any("record" not in one for one in documents):
        raise DataError(f"{path} was written without texts", fix="cook with undo_text: true to be able to undo")
    return [_before(one, rule) for one in documents if rule is None or not _lost(one, rule)]


def _touched(document: dict[str, Any], rule: str) -> bool:
    return not _lost(document, rule) and any(step["rule"] == rule for step in document["steps"])


def _lost(document: dict[str, Any], rule: str) -> bool:
    """Return whether another rule dropped the document."""
    last = document["steps"][-1] if document["steps"] else {"action": "", "rule": ""}
    return last["action"] == "drop" and last["rule"] != rule


def _before(document: dict[str, Any], rule: str | None) -> Record:
    """Return the record as it was before the rule or, where that did nothing to it, before the window joined it."""
    record: Record = document["record"]
    if rule is None:
        return record
    for step in document["steps"]:
        if step["rule"] in (rule, "window"):
            return with_texts(record, tuple(step["before"]))
    return record
