"""DataCooker: documents through the rules and out again, with a report and an undo log, in bounded memory.

Blocks of the input are cooked by all cores and finished in the input's order, so the output is the same for any number
of workers. A run that was killed goes on from its last commit and ends with the same output. Not here: the rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deepseek.data.cooker.block import Kitchen
from deepseek.data.cooker.config import CookerConfig
from deepseek.data.cooker.finish import BlockRule, Finisher
from deepseek.data.cooker.folder import OUTPUT, UNDO, WorkFolder
from deepseek.data.cooker.length import token_counter
from deepseek.data.cooker.line_counts import LineCounts
from deepseek.data.cooker.prepare import prepare_kitchen, reference_texts, used_files
from deepseek.data.cooker.result import CookReport
from deepseek.data.cooker.rules.domain import DomainBertScore, Embed
from deepseek.data.cooker.rules.duplicates import Duplicates
from deepseek.data.cooker.rules.window import Window
from deepseek.data.cooker.source import Position, Source
from deepseek.data.cooker.tally import Tally
from deepseek.data.cooker.workers import cook_all, count_all
from deepseek.errors import ConfigError, DataError, StorageError
from deepseek.files import folder_lock, sha256, write_json, write_text

_SMALL = 4 << 20
_COMMIT_SHARE = 20.0


class Progress(NamedTuple):
    """How far a run is: its pass ("lines" counts recurring lines, "rules" does the work), bytes read, documents."""

    phase: str
    bytes_done: int
    bytes_total: int
    documents_in: int
    documents_out: int


class DataCooker:
    """Cleans documents by the rules of a CookerConfig.

    `workers` is the number of processes (None: one for each core; small inputs are done in this one). `embed` gives
    the embeddings that the domain rule's BERTScore needs. `commit_seconds` is the shortest time between commits; they
    take at most a twentieth of the run.

    Raises ConfigError where settings don't fit each other.
    """

    def __init__(
        self,
        config: CookerConfig | None = None,
        *,
        workers: int | None = None,
        embed: Embed | None = None,
        progress: Callable[[Progress], None] | None = None,
        commit_seconds: float = 1.0,
    ) -> None:
        self.config = config if config is not None else CookerConfig()
        if workers is not None and workers < 1:
            raise ConfigError("workers is too small", found=workers, wanted="at least 1, or None for all cores")
        domain = self.config.domain
        if domain.references is not None and domain.method == "bertscore" and embed is None:
            raise ConfigError(
                "the domain rule needs an embedding model for BERTScore",
                found="embed=None",
                wanted="a function from texts to their tokens' embeddings",
                fix="give embed=..., on the command line --embed FOLDER, or set domain.method to ngram_proxy",
            )
        self.workers = workers
        self.embed = embed
        self.progress = progress
        self.commit_seconds = commit_seconds

    def run(
        self, input: str | Path, output: str | Path, *, report: str | Path | None = None, resume: bool = True
    ) -> CookReport:
        """Cook `input` (a JSONL or text file, or a folder) to the JSONL file `output`, with `OUTPUT.undo.jsonl`.

        With `report`, an HTML page and a JSON file of the same name are written. A run that was interrupted goes on
        (`resume=False` starts over); what it has so far is in the folder `OUTPUT.cook`.

        Raises DataError for input that can't be read, ConfigError where the output is an input or exists, StorageError
        when the disk refuses; what was committed stays, and the next run goes on there.
        """
        source = Source(input)
        target = Path(output)
        page = Path(report) if report is not None else None
        _check_paths(source, target, page)
        work = target.with_name(f"{target.name}.cook")
        with folder_lock(work):
            folder = WorkFolder(work, self._fingerprint(source), resume)
            _check_free(target, folder)
            result = self._run(source, target, page, folder)
            folder.remove()
        return result

    def _run(self, source: Source, target: Path, page: Path | None, folder: WorkFolder) -> CookReport:
        started = time.monotonic() - float(folder.state.get("seconds", 0.0))
        if not folder.state.get("finished"):
            kitchen = self._kitchen(source, folder)
            try:
                folder.open()
                self._cook(source, kitchen, folder, started)
            except StorageError as error:
                error.fix = f"{error.fix}; what is finished is in {folder.path}, and the same call goes on from there"
                error.args = (error._message(),)
                raise
            finally:
                folder.close()
        result = self._result(source, target, page, folder)
        if page is not None:
            from deepseek.data.cooker.page import render

            write_json(page.with_suffix(".json"), result.to_dict())
            write_text(page, render(result))
        folder.move_out(UNDO, _undo_path(target))
        folder.move_out(OUTPUT, target)
        return result

    def _cook(self, source: Source, kitchen: Kitchen, folder: WorkFolder, started: float) -> None:
        finisher, duplicates = self._finisher()
        names = [rule.name for rule in kitchen.rules()] + finisher.names()
        state = folder.state
        tally = Tally.from_dict(state["tally"]) if state else Tally.of(names)
        position = Position.from_dict(state["position"]) if state else Position()
        finisher.lines = int(state.get("lines", 0))
        if state and duplicates is not None:
            duplicates.load(folder.duplicates())
        save = duplicates.save if duplicates is not None else None
        committed = time.monotonic()
        wait = self.commit_seconds

        def commit(finished: bool) -> None:
            seconds = time.monotonic() - started
            values = {"tally": tally.to_dict(), "position": position.to_dict(), "lines": finisher.lines}
            folder.commit({**values, "seconds": seconds, "finished": finished}, save)

        blocks = source.blocks(position, self.config.block_documents)
        for block, position in cook_all(blocks, kitchen, self._processes(source)):
            output, log = finisher.finish(block, tally)
            folder.append(OUTPUT, output)
            folder.append(UNDO, log)
            self._tell("rules", position.done, source, tally)
            if (now := time.monotonic()) - committed >= wait:
                commit(finished=False)
                committed = time.monotonic()
                wait = max(self.commit_seconds, _COMMIT_SHARE * (committed - now))
        if tally.before.documents == 0 and tally.skipped:
            folder.remove()  # there is nothing to go on with
            raise DataError(
                f"no line of {source.root} could be read",
                found=tally.skip_examples[0],
                fix="name the keys that hold the text: rename={'question': 'prompt', 'answer': 'response'}, "
                "on the command line --rename question=prompt --rename answer=response",
            )
        commit(finished=True)

    def _kitchen(self, source: Source, folder: WorkFolder) -> Kitchen:
        """Return what the rules need; the lines that recur are counted first, unless that was done before."""
        kitchen = prepare_kitchen(self.config)
        boilerplate = self.config.boilerplate
        if not (boilerplate.enabled and boilerplate.recurring):
            return kitchen
        if folder.counts.is_file():
            counts = LineCounts.load(folder.counts)
        else:
            counts = LineCounts()
            blocks = source.blocks(Position(), self.config.block_documents)
            for (found, documents), position in count_all(blocks, kitchen, self._processes(source)):
                counts.add_documents(found, documents)
                self._tell("lines", position.done, source, None)
            counts.save(folder.counts)
        return Kitchen(kitchen.config, counts, kitchen.search, kitchen.grams, kitchen.known)

    def _finisher(self) -> tuple[Finisher, Duplicates | None]:
        config = self.config
        rules: list[BlockRule] = []
        if config.domain.references is not None and config.domain.method == "bertscore" and self.embed is not None:
            references = reference_texts(config.domain.references, config.domain.max_references)
            rules.append(DomainBertScore(config.domain, self.embed, references))
        duplicates = Duplicates(config.duplicates) if config.duplicates.enabled else None
        if duplicates is not None:
            rules.append(duplicates)
        window = Window(config.window, token_counter(config.window.tokenizer)) if config.window.enabled else None
        return Finisher(rules, window, config.examples, config.undo_text), duplicates

    def _result(self, source: Source, target: Path, page: Path | None, folder: WorkFolder) -> CookReport:
        from deepseek.data.cooker.sample import duplicates_quality

        tally = Tally.from_dict(folder.state["tally"])
        finished = folder.file(OUTPUT) if folder.file(OUTPUT).exists() else target
        return CookReport(
            input=str(source.root),
            output=str(target),
            undo_log=str(_undo_path(target)),
            report=str(page) if page is not None else None,
            documents_in=tally.before.documents,
            documents_out=tally.after.documents,
            seconds=float(folder.state["seconds"]),
            tally=tally,
            config=self.config.to_dict(),
            length_unit=self.config.window.tokenizer or "estimate",
            duplicates_quality=duplicates_quality(finished, self.config.duplicates) if page is not None else None,
        )

    def _processes(self, source: Source) -> int:
        if self.workers is not None:
            return self.workers
        if source.bytes < _SMALL:
            return 1
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _tell(self, phase: str, done: int, source: Source, tally: Tally | None) -> None:
        if self.progress is not None:
            seen = tally.before.documents if tally else 0
            self.progress(Progress(phase, done, source.bytes, seen, tally.after.documents if tally else 0))

    def _fingerprint(self, source: Source) -> str:
        """Return a hash of what decides the output: settings, input files and the files that the settings name."""
        named = {str(path): sha256(path) for path in used_files(self.config)}
        values = [self.config.to_dict(), source.identity(), named]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def _undo_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.undo.jsonl")


def _check_paths(source: Source, target: Path, page: Path | None) -> None:
    """Refuse outputs that are inputs, or that stand among them."""
    writes = [target, _undo_path(target)] + ([page, page.with_suffix(".json")] if page is not None else [])
    places = [path.resolve() for path in writes]
    if len(set(places)) < len(places):
        raise ConfigError("two outputs have the same name", found=", ".join(map(str, writes)))
    inputs = {file.resolve() for file in source.files}
    root = source.root.resolve()
    for path, place in zip(writes, places, strict=True):
        if place in inputs or (root.is_dir() and place.is_relative_to(root)):
            raise ConfigError(
                "an input would be overwritten or mixed with the output",
                found=str(path),
                wanted="a place outside the input",
            )
        if place.is_dir():
            raise ConfigError(f"{path} is a folder", wanted="a file to write")


def _check_free(target: Path, folder: WorkFolder) -> None:
    for path in (target, _undo_path(target)):
        if path.exists() and not folder.state.get("finished"):
            if not folder.state:
                folder.remove()
            raise ConfigError(f"{path} exists already", fix="choose another output, or remove it first")
