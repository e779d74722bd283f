"""`deepseek cook`: documents cleaned by rules, with a report and an undo log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from deepseek.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from deepseek.data.cooker import CookerConfig, CookReport, Progress

_PASSES = {"lines": "counting lines that recur", "rules": "cooking"}


def cook(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="JSON lines, a text file, or a folder of them.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The JSONL file to write; it must not exist yet.")],
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here, and a JSON file of the same name.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings of the rules, in YAML; see --show-config.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Switch a rule off; may be given several times.")
    ] = None,
    keep_language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Keep this language alone, such as zh; may be repeated.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option(help="A list of sensitive words, one a line: documents are dropped.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="An evaluation set: documents that overlap with it are dropped.")
    ] = None,
    domain: Annotated[
        Path | None, typer.Option(help="Reference texts of a domain: documents must be like them.")
    ] = None,
    embed: Annotated[
        Path | None, typer.Option(help="A BERT folder for the domain's BERTScore; without it an n-gram proxy is used.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to count tokens by; default: an estimate.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="KEY=NAME", help="A key that stands for text, prompt or response.")
    ] = None,
    start_over: Annotated[bool, typer.Option("--start-over", help="Don't go on with an interrupted run.")] = False,
    undo: Annotated[
        str | None, typer.Option(metavar="RULE", help="Undo a rule (or `all`): INPUT is then a cooked file.")
    ] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the settings as YAML and stop.")] = False,
) -> None:
    """Clean text for training: repair, filter, mask, deduplicate and cut to length, with a report and an undo log.

    The rules run in this order, and each can be switched off with --without RULE:

      encoding, language, quality, boilerplate, personal_data, sensitive, contamination, domain, duplicates, window

    A run that was interrupted goes on when it is called again. All settings: deepseek cook IN OUT --show-config.

      deepseek cook in.jsonl out.jsonl --report r.html

      deepseek cook out.jsonl back.jsonl --undo quality
    """
    settings = _settings(config, without or [], keep_language or [], words, against or [], domain, embed, tokenizer)
    if rename:
        settings = settings.replace(rename={**settings.rename, **dict(map(_pair, rename))})
    if show_config:
        typer.echo(settings.to_yaml(), nl=False)
        return
    console = Console(highlight=False)
    if undo is not None:
        _undo(source, output, undo, console)
        return
    from deepseek.data.cooker import DataCooker

    embedder = bert_embedder(embed) if embed is not None else None
    with _bar(console) as bar:
        cooker = DataCooker(settings, workers=workers, embed=embedder, progress=_shown_on(bar))
        result = cooker.run(source, output, report=report, resume=not start_over)
    _say(result, console)


def _pair(text: str) -> tuple[str, str]:
    """Return key and name of KEY=NAME. Raises ConfigError."""
    key, equals, name = text.partition("=")
    if not (key and equals and name):
        raise ConfigError("--rename is wrong", found=text, wanted="KEY=NAME, such as question=prompt")
    return key, name


def _settings(
    config: Path | None,
    without: list[str],
    languages: list[str],
    words: Path | None,
    against: list[Path],
    domain: Path | None,
    embed: Path | None,
    tokenizer: Path | None,
) -> CookerConfig:
    """Return the settings of the file with those of the command line in their place. Raises ConfigError."""
    from deepseek.data.cooker import CookerConfig

    settings = CookerConfig.from_yaml(config) if config is not None else CookerConfig()
    changes: dict[str, Any] = {}
    if languages:
        changes["language"] = settings.language.replace(enabled=True, keep=languages)
    if words is not None:
        changes["sensitive"] = settings.sensitive.replace(words=str(words))
    if against:
        changes["contamination"] = settings.contamination.replace(against=[str(path) for path in against])
    if domain is not None:
        changes["domain"] = settings.domain.replace(references=str(domain))
    if embed is not None:
        changes["domain"] = changes.get("domain", settings.domain).replace(method="bertscore")
    if tokenizer is not None:
        changes["window"] = settings.window.replace(tokenizer=str(tokenizer))
    off: dict[str, dict[str, Any]] = {
        "sensitive": {"words": None},
        "contamination": {"against": []},
        "domain": {"references": None},
    }
    for name in without:
        if name not in _rules(settings):
            raise ConfigError(f"there is no rule '{name}'", wanted=", ".join(_rules(settings)))
        section = changes.get(name, getattr(settings, name))
        changes[name] = section.replace(**off.get(name, {"enabled": False}))
    return settings.replace(**changes) if changes else settings


def _rules(settings: CookerConfig) -> list[str]:
    return [name for name in type(settings).model_fields if hasattr(getattr(settings, name), "model_fields_set")]


def _undo(source: Path, output: Path, rule: str, console: Console) -> None:
    from deepseek.data.cooker import CookerConfig, restore

    known = _rules(CookerConfig())
    if rule != "all" and rule not in known:
        raise ConfigError(f"there is no rule '{rule}'", wanted=", ".join(["all", *known]))
    log = source.with_name(f"{source.stem}.undo.jsonl")
    back = restore(source, log, output, None if rule == "all" else rule)
    console.print(f"{back:,} documents came back; written: {escape(str(output))}")


def _bar(console: Console) -> Bar:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    return Bar(*columns, TextColumn("{task.fields[documents]}"), console=console, transient=True)


def _shown_on(bar: Bar) -> Callable[[Progress], None]:
    tasks: dict[str, Any] = {}

    def show(progress: Progress) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bar.add_task(_PASSES[progress.phase], total=progress.bytes_total, documents="")
        counts = f"{progress.documents_in:,} in, {progress.documents_out:,} out" if progress.documents_in else ""
        bar.update(tasks[progress.phase], completed=progress.bytes_done, documents=counts)

    return show


def _say(result: CookReport, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("rule", "seen", "changed", "dropped", "split", "joined"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for name, rule in result.tally.rules.items():
        counts = (rule.seen, rule.changed, rule.dropped, rule.split, rule.merged)
        table.add_row(name, *(f"{count:,}" if count else "-" for count in counts))
    console.print(table)
    if result.tally.skipped:
        console.print(
            f"{result.tally.skipped:,} lines could not be read; first: {escape(result.tally.skip_examples[0])}"
        )
    console.print(f"{result.documents_in:,} documents in, {result.documents_out:,} out, {result.seconds:.1f} s")
    for label, path in (("written", result.output), ("undo log", result.undo_log), ("report", result.report)):
        if path is not None:
            console.print(f"{label}: {escape(path)}")


def bert_embedder(folder: Path) -> Callable[[list[str]], list[Tensor]]:
    """Return a function from texts to the features (tokens, d_model) of their tokens, without the special ones.

    `folder` holds a BERT in the Hugging Face layout and its tokenizer.json. Longer texts are cut to what the model
    takes. Raises ModelError for another model, DataError where there is no tokenizer.
    """
    import torch

    from deepseek.data.cooker.length import load_tokenizer
    from deepseek.models import BERT, from_pretrained

    model = from_pretrained(folder, head="none")
    if not isinstance(model, BERT):
        raise ModelError(f"{folder} holds no BERT", found=type(model).__name__)
    library = load_tokenizer(folder)
    most = model.config.max_length

    def embed(texts: list[str]) -> list[Tensor]:
        vectors = []
        for text in texts:
            encoded = library.encode(text.encode("utf-8", "replace").decode("utf-8"))
            ids = torch.tensor([encoded.ids[:most]])
            inside = torch.tensor(encoded.special_tokens_mask[:most]) == 0
            with torch.inference_mode():
                features = model.forward_features(ids)[0]
            vectors.append(features[inside] if inside.any() else features)
        return vectors

    return embed
