"""`deepseek quickstart`: the whole road in a few minutes, and one question to the served model over HTTP."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from rich.markup import escape

from deepseek.config import parse_yaml
from deepseek.errors import DataError
from deepseek.files import folder_lock
from deepseek.report import render_report
from deepseek.road.recipe import Recipe, checked_recipe
from deepseek.road.run_folder import RunFolder
from deepseek.road.walk import Say, Walk, stage, walk
from deepseek.serve import BackgroundServer

_SHORT_TEXT = 400_000  # bytes; below, smaller batches give the model enough different steps


def quickstart_recipe(data: str | None, output_dir: str, minutes: float | None = None) -> Recipe:
    """Return the quickstart's recipe, on the user's own text where given, under a name not used yet."""
    recipe = checked_recipe(parse_yaml(template("quickstart"), "quickstart.yaml"))
    train = recipe.train
    if minutes is not None:
        train = train.replace(time_budget=minutes * 60)
    if data is not None:
        if not Path(data).exists():
            raise DataError(
                f"{data} does not exist", wanted="a text file, a JSONL file or a folder", fix="check the path"
            )
        if _size(Path(data)) < _SHORT_TEXT:
            train = train.replace(batch_size=4, learning_rate=1e-3)
        recipe = recipe.replace(data=recipe.data.replace(train=data))
    return recipe.replace(train=train, output_dir=output_dir, name=_free_name(Path(output_dir)))


def template(name: str) -> str:
    """Return the text of a recipe that comes with the package."""
    return (resources.files("deepseek.road") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")


def quickstart(recipe: Recipe, say: Say) -> Walk:
    """Walk the recipe's road, serve the compressed model, ask it one question, and put all of it into the report."""
    start = time.perf_counter()
    result = walk(recipe, say)
    if result.interrupted:
        return result
    run = result.run
    with folder_lock(run.path):
        with stage(say, "serve"):
            question = run.results["samples"][0]["prompt"]
            run.record("serve", ask(run, question, say))
        result.seconds = time.perf_counter() - start
        run.record("seconds", result.seconds)  # its report tells the serving too
        result.report = render_report(run.path)
    return result


def ask(run: RunFolder, question: str, say: Say) -> dict[str, Any]:
    """Serve the run's smallest bundle on a free port, stream one answer, and return what was measured."""
    bundle = run.compressed if run.compressed.exists() else run.bundle
    with BackgroundServer([bundle]) as server:
        say(f"  {server.url}  (a free port, only for this question)")
        body = {"model": bundle.name, "prompt": question, "max_tokens": 48, "temperature": 0.8, "top_k": 40, "seed": 1}
        pieces, times = [], [time.perf_counter()]
        for piece in stream_completion(f"{server.url.rstrip('/')}/v1/completions", {**body, "repetition_penalty": 1.2}):
            times.append(time.perf_counter())
            pieces.append(piece)
    answer = "".join(pieces)
    say(escape(f"  asked {question!r}, heard: {answer.strip()[:300]!r}"))
    rate = (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else 0.0
    first_ms = (times[1] - times[0]) * 1e3 if len(times) > 1 else 0.0
    return {"question": question, "answer": answer, "first_token_ms": first_ms, "tokens_per_second": rate}


def stream_completion(url: str, body: dict[str, Any]) -> Iterator[str]:
    """Yield the text pieces of a streamed completion."""
    request = urllib.request.Request(
        url, json.dumps({**body, "stream": True}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                piece = json.loads(line[6:])["choices"][0].get("text", "")
                if piece:
                    yield piece


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _free_name(folder: Path) -> str:
    name, number = "quickstart", 1
    while (folder / name).exists():
        number += 1
        name = f"quickstart-{number}"
    return name
