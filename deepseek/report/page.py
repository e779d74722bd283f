"""The whole page: parts in order, style and script inline, nothing loaded from anywhere.

A content security policy in the page allows no request at all and no script but its own, which only remembers the
language and copies commands; without it the page reads the same. Not here: what the parts say.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from deepseek.files import write_text
from deepseek.lazy import require
from deepseek.report import closing, deployment, headline, measured, training
from deepseek.report.html import Html, join, tag
from deepseek.report.parts import Part
from deepseek.report.run_folder import Run, read_run

_PARTS = (
    measured.evaluation,
    measured.examples,
    training.training,
    training.samples,
    deployment.compression,
    deployment.export,
    deployment.serving,
    training.data,
    training.model,
    closing.environment,
    closing.recipe,
    closing.how_to_go_on,
)

_SCRIPT = """
(function () {
  var chinese = document.getElementById("lang-zh"), english = document.getElementById("lang-en"), kept = null;
  function show() { document.documentElement.lang = chinese.checked ? "zh-CN" : "en"; }
  function choose() {
    show();
    try { localStorage.setItem("deepseek-report-language", chinese.checked ? "zh" : "en"); } catch (error) {}
  }
  try { kept = localStorage.getItem("deepseek-report-language"); } catch (error) {}
  (/^zh/i.test(kept || navigator.language || "") ? chinese : english).checked = true;
  show();
  chinese.addEventListener("change", choose);
  english.addEventListener("change", choose);
  document.addEventListener("DOMContentLoaded", function () {
    if (!navigator.clipboard) return;
    document.querySelectorAll("button.copy").forEach(function (button) {
      button.hidden = false;
      button.addEventListener("click", function () {
        navigator.clipboard.writeText(button.parentNode.querySelector("code").innerText).then(function () {
          button.classList.add("done");
          setTimeout(function () { button.classList.remove("done"); }, 1200);
        });
      });
    });
  });
})();
"""


def render_report(run_folder: str | Path) -> Path:
    """Write `report.html` into a run folder from its results.json, metrics.jsonl and recipe.yaml; return its path.

    Each of the three may be absent or damaged in part; the page then says so and shows the rest.
    Raises MissingExtraError without matplotlib, DataError where the folder is not a run's, StorageError where the disk
    refuses. Nothing is written then, and an older report stays as it was.
    """
    require("matplotlib", "report")
    run = read_run(run_folder)
    target = run.folder / "report.html"
    write_text(target, page(run))
    return target


def page(run: Run) -> Html:
    """Return the page as HTML."""
    parts = [part for part in (build(run) for build in _PARTS) if part is not None]
    content = tag("main", headline.header(run), _contents(parts), *(part.render() for part in parts))
    body = tag("body", _languages(), tag("script", Html(_SCRIPT)), content)
    return join([Html("<!DOCTYPE html>\n"), tag("html", _head(run), body, lang="en"), "\n"])


def _head(run: Run) -> Html:
    style = files("deepseek.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{run.name} · run report"),
        tag("style", Html(style)),
    )


def _languages() -> Html:
    def choice(code: str, language: str, words: str, *, checked: bool = False) -> Html:
        box = tag("input", type="radio", name="language", id=f"lang-{code}", checked=checked)
        return join([box, tag("label", words, for_=f"lang-{code}", lang=language)])

    choices = [choice("en", "en", "English", checked=True), choice("zh", "zh-CN", "中文")]
    return tag("form", *choices, class_="languages", aria_label="Language 语言", autocomplete="off")


def _contents(parts: list[Part]) -> Html:
    links = [tag("a", part.title, href=f"#{part.anchor}") for part in parts]
    return tag("nav", *links, aria_label="Contents 目录") if len(links) > 2 else Html("")
