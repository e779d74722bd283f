"""The run report: what it shows, what it survives, and that nothing from data becomes markup."""

from __future__ import annotations

import errno
import json
import math
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import DataError, MissingExtraError, StorageError
from deepseek.report import numbers, render_report
from deepseek.report.curves import Curve, envelope, smooth, thin
from deepseek.report.html import Html, join, safe, tag
from deepseek.report.run_folder import read_run

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'& $x_2$ @0@ }</style>"
VOID = {"meta", "link", "br", "input", "hr", "img"}


def results() -> dict[str, Any]:
    return {
        "name": "tiny run",
        "created": "2026-01-02T03:04:05Z",
        "data": {"source": "my.txt", "documents": 12, "skipped": 1, "train_tokens": 123456, "seconds": 1.5},
        "model": {"name": "GPT", "parameters": 1234567, "config": {"d_model": 64, "tie_embeddings": True}},
        "train": {"steps": 40, "tokens": 20480, "seconds": 61.0, "tokens_per_second": 335.7, "precision": "bf16"},
        "evaluate": {"val_loss": 3.25, "perplexity": 25.79, "unigram_loss": 6.5, "bigram_loss": 4.75},
        "samples": [{"prompt": "Return a", "text": "Return a new list."}],
        "compress": {
            "rows": [
                {
                    "form": "fp32",
                    "bytes": 8_000_000,
                    "perplexity": 25.0,
                    "token_ms": {"median": 4.0, "p10": 3.5, "p90": 5},
                },
                {
                    "form": "int8",
                    "bytes": 2_000_000,
                    "perplexity": 25.5,
                    "token_ms": {"median": 3.0, "p10": 2.9, "p90": 4},
                },
            ],
            "chosen": "int8",
        },
        "export": {"format": "onnx", "bytes": 2_100_000, "checks": [{"shape": [1, 16], "max_abs_error": 1.5e-5}]},
        "serve": {"question": "What is a list?", "answer": "A list is a list.", "first_token_ms": 12.0},
        "environment": {"torch": "2.13.0", "cpu": {"cores": 2}},
    }


def metrics(steps: int = 40) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 3 + 6 * math.exp(-step / 8)
        lines.append({"step": step, "seconds": step * 1.5, "loss": loss, "lr": 1e-3, "tokens_per_second": 330.0 + step})
        if step % 10 == 0:
            lines.append({"step": step, "seconds": step * 1.5, "val_loss": loss + 0.1})
    return lines


def write_run(
    folder: Path, *, values: Any = None, lines: list[Any] | None = None, recipe: str = "name: tiny\n"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results() if values is None else values), encoding="utf-8")
    written = [line if isinstance(line, str) else json.dumps(line) for line in (metrics() if lines is None else lines)]
    (folder / "metrics.jsonl").write_text("\n".join(written) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The page as an HTML parser sees it: elements, attributes, text; unbalanced tags are an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, list[tuple[str, dict[str, str | None]]]]] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((data, list(self.open)))

    @property
    def text(self) -> str:
        return "".join(
            data for data, parents in self.texts if all(name not in ("script", "style") for name, _ in parents)
        )

    def count(self, name: str) -> int:
        return sum(element == name for element, _ in self.elements)


def render(folder: Path) -> Page:
    path = render_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_shows_the_key_numbers_and_every_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "bundle").mkdir()
    page = render(run)
    for shown in ("tiny run", "3.250", "1.50 below the bigram model’s 4.750", "25.79", "−75.0%", "1,234,567", "my.txt"):
        assert shown in page.text
    ids = {attributes.get("id") for name, attributes in page.elements if name == "section"}
    wanted = {
        "training",
        "samples",
        "compression",
        "export",
        "serving",
        "data",
        "model",
        "environment",
        "recipe",
        "next",
    }
    assert ids == wanted


def test_the_chosen_row_is_marked_and_no_other(tmp_path: Path) -> None:
    page = render(write_run(tmp_path))
    row = "".join(data for data, parents in page.texts if ("tr", {"class": "marked"}) in parents)
    assert row.startswith("int8 ") and "2.00" in row
    assert sum(attributes.get("class") == "marked" for _, attributes in page.elements) == 1


@pytest.mark.parametrize("section", sorted(results()))
def test_any_section_may_be_absent(tmp_path: Path, section: str) -> None:
    values = results()
    del values[section]
    assert render(write_run(tmp_path, values=values)).count("h1") == 1


@pytest.mark.parametrize("wrong", ["text", 3, None, [], [1, "x", None], {}, {"rows": 5, "config": [], "seconds": "x"}])
@pytest.mark.parametrize("section", sorted(results()))
def test_a_section_of_a_wrong_type_reads_as_absent(tmp_path: Path, section: str, wrong: object) -> None:
    render(write_run(tmp_path, values={**results(), section: wrong}, lines=metrics(3)))


def test_numbers_that_are_not_finite_or_too_large_read_as_absent(tmp_path: Path) -> None:
    text = json.dumps(results()).replace("3.25", "NaN").replace("25.79", "1e999").replace("335.7", "1" + "0" * 400)
    run = write_run(tmp_path)
    (run / "results.json").write_text(text, encoding="utf-8")
    page = render(run)
    for absurd in ("nan", "inf", "0000000000"):
        assert absurd not in page.text.lower()


@pytest.mark.parametrize("missing", ["results.json", "metrics.jsonl", "recipe.yaml"])
def test_a_missing_file_leaves_the_rest(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path)
    (run / missing).unlink()
    page = render(run)
    assert (missing in page.text) == (missing != "recipe.yaml")
    assert page.count("svg") > 0


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"[" * 100_000, b"null"])
def test_damaged_results_are_noted(tmp_path: Path, content: bytes) -> None:
    run = write_run(tmp_path)
    (run / "results.json").write_bytes(content)
    assert "results.json is damaged" in render(run).text


def test_damaged_metrics_lines_are_left_out_and_noted_by_number(tmp_path: Path) -> None:
    lines = ['{"step": 1, "lo', *metrics(5), "\x00\x00", "[]", '{"loss": 3.0}', '{"step": NaN}', '{"step": true}', "{"]
    run = write_run(tmp_path, lines=lines)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\xff\n{"step": 6, "loss": 3.0}\n{"step": 7, "loss"')
    assert len(read_run(run).train) == 6
    assert "left out 9 damaged lines (1, 7, 8, 9, 10, …)" in render(run).text


def test_losses_that_are_not_numbers_are_not_drawn(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 9.0},
        '{"step": 2, "loss": NaN}',
        '{"step": 3, "loss": 1e300}',
        {"step": 4, "loss": None},
    ]
    page = render(write_run(tmp_path, lines=lines))
    assert "nan" not in re.sub(r"<(style|script).*?</\1>", "", page.source, flags=re.DOTALL).lower()


def test_a_resumed_run_is_drawn_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, lines=[*metrics(30), *metrics(40)[21:]])
    read = read_run(run)
    steps = [line["step"] for line in read.train]
    assert steps == list(range(1, 41))
    assert [line["step"] for line in read.validation] == [10, 20, 30, 40]
    assert "resumed" in render(run).text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_steps_are_enough(tmp_path: Path, count: int) -> None:
    assert ("Throughput" in render(write_run(tmp_path, lines=metrics(count))).text) == (count > 0)


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return ATTACK + value if isinstance(value, str) else value


def test_nothing_from_data_becomes_markup(tmp_path: Path) -> None:
    values = hostile(results())
    values["environment"][ATTACK] = {ATTACK: ATTACK}
    values["model"]["config"][ATTACK] = [ATTACK]
    run = write_run(tmp_path / "a <s> & 'c'", values=values, recipe=f"# {ATTACK}\nname: {ATTACK}\n{ATTACK}: 1\n")
    (run / "bundle<s>").mkdir()
    page = render(run)
    assert (page.count("script"), page.count("style"), page.count("img"), page.count("s")) == (1, 1, 0, 0)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.text.count(ATTACK) >= 20
    assert "bundle<s>" in page.text and "a <s> &" in page.text


def test_text_that_utf8_or_html_cannot_hold_is_made_visible(tmp_path: Path) -> None:
    values = {**results(), "name": "a\ud800b\x00c\x1bd"}
    assert "a\ufffdb\u2400c\u241bd" in render(write_run(tmp_path, values=values)).text


def test_the_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    page = render(write_run(tmp_path))
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for name, attributes in page.elements:
        for key in ("href", "src", "xlink:href", "aria-labelledby", "for"):
            target = attributes.get(key)
            if target is None or (name == "link" and target == "data:,"):
                continue
            assert target.removeprefix("#") in ids, (name, key, target)
            assert key != "src"
    assert all(target in ids for target in re.findall(r"url\(#([^)]+)\)", page.source))
    assert "http" not in page.source.replace("http-equiv", "") and "@import" not in page.source


def test_charts_take_their_colours_from_the_page(tmp_path: Path) -> None:
    page = render(write_run(tmp_path))
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    used = set(re.findall(r"var\((--chart-[a-z]+)\)", drawn))
    defined = set(re.findall(r"(--chart-[a-z]+):", page.source))
    assert {"--chart-train", "--chart-validation", "--chart-bigram", "--chart-chosen"} <= used <= defined


def test_every_english_word_has_its_chinese(tmp_path: Path) -> None:
    page = render(write_run(tmp_path))
    classes = [attributes.get("class") for _, attributes in page.elements]
    assert classes.count("en") == classes.count("zh") > 50
    for data, parents in page.texts:
        if re.search(r"[\u4e00-\u9fff]", data):
            inside = any(a.get("class") == "zh" or name in ("label", "style") for name, a in parents)
            assert inside, data


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first = render_report(run).read_bytes()
    assert render_report(run).read_bytes() == first


def test_matplotlib_settings_neither_leak_in_nor_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    plain = render_report(run).read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.linewidth": 9.0, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert render_report(run).read_bytes() == plain
        assert dict(matplotlib.rcParams) == before


def test_a_long_run_gives_a_small_page(tmp_path: Path) -> None:
    assert len(render(write_run(tmp_path, lines=metrics(20_000))).source) < 400_000


def test_commands_carry_the_runs_own_paths_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("-my run's & folder"))
    for folder in ("bundle", "bundle-int8", "checkpoints", "bundle.tmp-123"):
        (run / folder).mkdir()
    page = render(run)
    commands = [
        shlex.split(data) for data, parents in page.texts if data.startswith("deepseek ") and parents[-1][0] == "code"
    ]
    path = "./-my run's & folder"
    assert commands == [
        ["deepseek", "serve", f"{path}/bundle"],
        ["deepseek", "serve", f"{path}/bundle-int8"],
        ["deepseek", "train", "--resume", path],
        ["deepseek", "run", f"{path}/recipe.yaml"],
    ]


def test_a_prompt_is_not_shown_twice(tmp_path: Path) -> None:
    values = {**results(), "samples": [{"prompt": "One", "text": "One two"}, {"prompt": "Six", "text": " seven"}]}
    text = render(write_run(tmp_path, values=values)).text
    assert "One two" in text and "Six seven" in text and "OneOne" not in text


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("x", encoding="utf-8")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(DataError, match="is not a run folder"):
        render_report(path)
    assert not (path / "report.html").exists()


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    (run / "report.html").write_text("old", encoding="utf-8")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("deepseek.files.fsync_file", full)
    with pytest.raises(StorageError, match="free some space"):
        render_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in run.iterdir()) == [
        "metrics.jsonl",
        "recipe.yaml",
        "report.html",
        "results.json",
    ]


def test_without_matplotlib_the_install_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"deepseek-framework\[report\]"):
        render_report(run)
    assert not (run / "report.html").exists()


def test_importing_needs_no_matplotlib() -> None:
    program = "import sys; sys.modules['matplotlib'] = None; import deepseek.report.charts, deepseek.report.page"
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (numbers.size(0), "0 B"),
        (numbers.size(999), "999 B"),
        (numbers.size(41_234_567), "41.2 MB"),
        (numbers.size(999_999), "1.00 MB"),
        (numbers.short(10_712_345), "10.7 M"),
        (numbers.short(12.0), "12"),
        (numbers.count(1234567.0), "1,234,567"),
        (numbers.duration(8.31), "8.3 s"),
        (numbers.duration(59.97), "1 min 00 s"),
        (numbers.duration(192), "3 min 12 s"),
        (numbers.duration(7199), "2 h 00 min"),
        (numbers.milliseconds(5.234), "5.23 ms"),
        (numbers.scientific(0.0000123), "1.2e−05"),
        (numbers.scientific(0.0), "0"),
        (numbers.percent(0.9990), "99.9%"),
        (numbers.fixed(1204.4, 2), "1,204"),
        (numbers.fixed(33.554, 2), "33.55"),
        (numbers.signed_percent(numbers.relative(1.0, 4.0)), "−75.0%"),
        (numbers.signed_percent(-0.0001), "±0.0%"),
        (numbers.signed_percent(numbers.relative(1.0, 0.0)), "–"),
        (numbers.size(None), "–"),
    ],
)
def test_numbers_read_well(shown: str, wanted: str) -> None:
    assert shown.replace("\u202f", " ") == wanted


points = st.lists(st.floats(-1e6, 1e6), max_size=400)


@given(points, st.integers(1, 30))
def test_fewer_points_keep_extremes_and_order(values: list[float], buckets: int) -> None:
    curve = Curve(list(range(len(values))), values)
    reduced = envelope(curve, buckets)
    assert list(reduced.x) == sorted(set(reduced.x)) and len(reduced.x) <= max(2 * buckets, 2)
    assert [values[int(x)] for x in reduced.x] == list(reduced.y)
    if values:
        assert (min(reduced.y), max(reduced.y)) == (min(values), max(values))
        assert thin(curve, buckets).x[-1] == len(values) - 1


@given(points)
def test_smoothing_stays_within_the_values(values: list[float]) -> None:
    smoothed = smooth(Curve(list(range(len(values))), values)).y
    assert len(smoothed) == len(values)
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for value in smoothed)


@given(st.text())
def test_markup_reads_back_as_the_text_that_went_in(text: str) -> None:
    page = Page(tag("p", text, title=text))
    visible = "".join(c for c in text.replace("\r\n", "\n") if c in "\n\t" or (ord(c) >= 32 and ord(c) != 127))
    kept = "".join(c for c in page.text if not 0x2400 <= ord(c) <= 0x2421)
    assert kept == "".join(c for c in visible if not 0x2400 <= ord(c) <= 0x2421)
    assert page.count("p") == len(page.elements) == 1


def test_markup_is_not_escaped_twice() -> None:
    assert join([tag("b", "<"), "&"], " < ") == "<b>&lt;</b> &lt; &amp;"
    assert safe(Html("<i>")) == "<i>"
    assert (
        tag("input", checked=True, disabled=False, class_=None, aria_label='"') == '<input checked aria-label="&quot;">'
    )
