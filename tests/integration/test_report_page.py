"""The run report in a real browser: fits a phone, asks for nothing, can be read in the dark and in two languages."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek.report import render_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
LONG = "a_very_long_name_without_any_place_to_break_" * 8

# The lowest contrast among all visible texts, with the text: WCAG 2, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 :
    ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = rgb(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let lowest = [99, ""], seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const front = light(rgb(element.closest("svg") ? style.fill : style.color)), back = light(behind(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    seen += 1;
    if (ratio < lowest[0]) lowest = [ratio, walker.currentNode.data];
  }
  return [...lowest, seen];
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "run"
    for folder in ("bundle", "checkpoints"):
        (run / folder).mkdir(parents=True)
    token = {"median": 4.0, "p10": 3.5, "p90": 5.0}
    rows = [
        {"form": "fp32", "bytes": 8_000_000, "perplexity": 25.0, "prefill_ms": 9.0, "token_ms": token},
        {"form": "int8 dynamic", "bytes": 2_000_000, "perplexity": 26.5, "prefill_ms": 6.0, "token_ms": token},
        {"form": LONG, "bytes": 2_000_000, "perplexity": 25.0, "prefill_ms": 9.9, "token_ms": token},
    ]
    results = {
        "name": f"run {LONG}",
        "created": "2026-01-02T03:04:05Z",
        "data": {"source": f"/data/{LONG}.txt", "documents": 12, "seconds": 1.5},
        "model": {"name": "GPT", "parameters": 1_234_567, "config": {"d_model": 64, LONG: LONG}},
        "train": {
            "tokens": 20480,
            "seconds": 61.0,
            "tokens_per_second": 335.7,
            "compiled": False,
            "compile_reason": LONG,
        },
        "evaluate": {"val_loss": 3.25, "perplexity": 25.79, "unigram_loss": 6.5, "bigram_loss": 4.75},
        "samples": [{"prompt": "Return", "text": f"Return <script>window.hacked = 1</script> {LONG} 你好"}],
        "compress": {"rows": rows, "chosen": "int8 dynamic"},
        "export": {"format": "onnx", "checks": [{"shape": [1, 16], "max_abs_error": 1.5e-5, "top1_agreement": 1.0}]},
        "serve": {"question": LONG, "answer": LONG, "first_token_ms": 12.0, "tokens_per_second": 80.5},
        "environment": {"torch": "2.13.0", "cpu": {"name": LONG, "cores": 2}},
    }
    lines: list[dict[str, float]] = []
    for step in range(1, 101):
        loss = 3 + 6 * math.exp(-step / 8)
        lines.append({"step": step, "seconds": step * 1.5, "loss": loss, "lr": 1e-3, "tokens_per_second": 330.0})
        lines.append({"step": step, "val_loss": loss + 0.1})
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{damaged", encoding="utf-8")
    (run / "recipe.yaml").write_text(f"# {LONG}\nnote: <script>window.hacked = 1</script>\n", encoding="utf-8")
    return render_report(run)


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Any]:
    contexts: list[Any] = []

    def open_page(width: int = 1200, scheme: str = "light", locale: str = "en-US", **options: Any) -> Any:
        viewport = {"width": width, "height": 800}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, locale=locale, **options)
        contexts.append(context)
        page = context.new_page()
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_page_never_scrolls_sideways(visit: Any, width: int, locale: str) -> None:
    page = visit(width, locale=locale)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = """(width) => [...document.querySelectorAll("section, header > *, figure, svg, dl, pre")].filter(
        (element) => element.getClientRects().length && element.getBoundingClientRect().right > width + 0.5
    ).map((element) => element.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond, width) == []


@pytest.mark.parametrize("width", [360, 1200])
def test_chart_words_are_legible_and_inside_their_box(visit: Any, width: int) -> None:
    page = visit(width)
    measure = """() => [...document.querySelectorAll(".chart text")].filter(
      (t) => t.getClientRects().length).map((t) => {
        const box = t.getBoundingClientRect(), frame = t.closest("section").getBoundingClientRect();
        const size = parseFloat(getComputedStyle(t).fontSize) * t.closest("svg").getBoundingClientRect().width
            / t.closest("svg").viewBox.baseVal.width;
        return [t.textContent, size, box.left >= frame.left - 0.5 && box.right <= frame.right + 0.5];
    })"""
    words = page.evaluate(measure)
    assert len(words) > 20
    assert [word for word in words if word[1] < 10.5 or not word[2]] == []


def test_nothing_is_requested_and_no_script_of_the_data_runs(browser: Any, report: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(report.as_uri(), wait_until="networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert messages == []
    assert page.evaluate("window.hacked") is None
    assert "<script>window.hacked = 1</script>" in page.inner_text("#samples")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(visit: Any, scheme: str) -> None:
    page = visit(1200, scheme=scheme)
    ratio, text, seen = page.evaluate(CONTRAST)
    assert seen > 150
    assert ratio >= 4.5, f"{text!r} has a contrast of {ratio:.2f}"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(", "))) < 150) == (scheme == "dark")


def test_the_language_follows_the_browser_and_the_switch(visit: Any) -> None:
    chinese = visit(locale="zh-CN")
    assert "验证损失" in chinese.inner_text("main") and "Validation loss" not in chinese.inner_text("main")
    assert "训练步" in chinese.inner_text("#loss-caption >> xpath=..")
    assert chinese.evaluate("document.documentElement.lang") == "zh-CN"
    english = visit()
    assert "Validation loss" in english.inner_text("main") and "验证损失" not in english.inner_text("main")
    english.get_by_text("中文", exact=True).click()
    assert "验证损失" in english.inner_text("main") and "Validation loss" not in english.inner_text("main")
    english.reload()
    assert "验证损失" in english.inner_text("main")


def test_without_scripts_the_page_is_english_and_can_still_be_switched(visit: Any) -> None:
    page = visit(locale="zh-CN", java_script_enabled=False)
    assert page.locator("h2", has_text="Training").is_visible()
    assert not page.get_by_text("验证损失").first.is_visible()
    assert not page.locator("button.copy").first.is_visible()
    page.get_by_text("中文", exact=True).click()
    assert page.get_by_text("验证损失").first.is_visible()


def test_the_phone_and_the_desk_each_see_one_version_of_a_chart(visit: Any) -> None:
    for width, shown, hidden in ((360, "narrow", "wide"), (1200, "wide", "narrow")):
        page = visit(width)
        assert page.locator(f"#training svg.{shown}").first.is_visible()
        assert not page.locator(f"#training svg.{hidden}").first.is_visible()
