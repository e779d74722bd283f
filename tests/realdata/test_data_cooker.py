"""The cooker on public text: English maths problems and Chinese hotel reviews, with the report in a real browser."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepseek.data.cooker import CookerConfig, DataCooker, identify, restore

pytestmark = pytest.mark.realdata
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _problems(real_data: Path) -> list[dict[str, Any]]:
    with open(real_data / "text" / "gsm8k" / "train.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{"prompt": row["question"], "response": row["answer"]} for row in rows]


def _reviews(real_data: Path) -> list[dict[str, Any]]:
    path = next((real_data / "text" / "chnsenticorp").glob("*.csv"))
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = [{"text": row["review"], "label": int(row["label"])} for row in csv.DictReader(handle)]
    return [row for row in rows if row["text"].strip()]


@pytest.fixture(scope="module")
def cooked(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cooked")
    rows = [*_problems(real_data)[:1500], *_reviews(real_data)[:1500]]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, *rows[:100]])
    (folder / "in.jsonl").write_text(text, encoding="utf-8")
    config = CookerConfig(window={"target": 256, "tolerance": 64}, duplicates={"method": "exact"})
    DataCooker(config, workers=1).run(folder / "in.jsonl", folder / "out.jsonl", report=folder / "r.html")
    return folder


def test_good_text_stays_and_copies_go(cooked: Path) -> None:
    report = json.loads((cooked / "r.json").read_text(encoding="utf-8"))
    rules = report["tally"]["rules"]
    assert report["documents_in"] == 3100
    assert rules["quality"]["dropped"] < 0.05 * 3100
    assert 90 <= rules["duplicates"]["dropped"] <= 110
    languages = report["tally"]["before"]["languages"]
    assert languages["en"] >= 1590 and languages["zh"] >= 1490


def test_everything_undone_is_the_input(cooked: Path, tmp_path: Path) -> None:
    restore(cooked / "out.jsonl", cooked / "out.undo.jsonl", tmp_path / "back.jsonl")
    rows = [
        [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        for path in (tmp_path / "back.jsonl", cooked / "in.jsonl")
    ]
    assert rows[0] == rows[1]


def test_languages_of_real_text_are_told_apart(real_data: Path) -> None:
    play = (real_data / "text" / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8").split("\n\n")
    english = [part for part in play if len(part) > 80][:1500] + [row["prompt"] for row in _problems(real_data)[:1500]]
    chinese = [row["text"] for row in _reviews(real_data)[:1500]]
    right = sum(identify(text)[0] == "en" for text in english) + sum(identify(text)[0] == "zh" for text in chinese)
    assert right / (len(english) + len(chinese)) > 0.98


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_report_fits_a_desk_and_a_phone(cooked: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        for width in (1100, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((cooked / "r.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("svg").count() == 3 and page.locator("table").count() >= 2
            assert len(asked) == 1
        browser.close()
