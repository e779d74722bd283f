"""The dashboard, the page's files and policy, versions, contrast; in a real browser where it takes one."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from deepseek.serve import BackgroundServer
from deepseek.serve.page.files import OPEN_PATHS, page_files
from tests.fake_serving import FakeModel
from tests.page_browser import browser, choose, wait_ready
from tests.toy_forms import MODELS, bundle

PAGE = Path(__file__).parents[2] / "deepseek/serve/page"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return bundle(tmp_path_factory.mktemp("b") / "b", MODELS["mlp"], "classification").path


@pytest.fixture(scope="module")
def server(made):
    with BackgroundServer({"plain": made, "words": FakeModel("fine ")}) as running:
        wait_ready(running.url)
        yield running


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def open_page(chromium):
    yield chromium.open
    chromium.close()


def ask_both(url, count):
    form = httpx.get(f"{url}/page/model?name=plain").json()
    for _ in range(count):
        assert httpx.post(f"{url}/v1/models/plain:predict", json={"instances": [form["example"]]}).is_success
        words = {"model": "words", "prompt": "x", "max_tokens": 20}
        assert httpx.post(f"{url}/v1/completions", json=words).is_success


def test_the_numbers_are_those_of_what_was_asked(server):
    before = httpx.get(f"{server.url}/page/numbers").json()
    ask_both(server.url, 5)
    httpx.post(f"{server.url}/v1/models/plain:predict", json={"instances": []})
    after = httpx.get(f"{server.url}/page/numbers").json()
    more = {
        kind: count - before["requests"]["statuses"].get(kind, 0)
        for kind, count in after["requests"]["statuses"].items()
    }
    assert (more["2xx"], more["4xx"]) == (10, 1)  # and none for the page's own
    counts = [count for _, count in after["requests"]["seconds"]]
    old = before["requests"]["seconds"]
    assert counts == sorted(counts) and counts[-1] - (old[-1][1] if old else 0) == 11
    assert after["requests"]["seconds"][-1][0] is None
    texts, rows = after["models"]["words"], after["models"]["plain"]
    assert texts["tokens"] - before["models"]["words"]["tokens"] == 100
    assert rows["rows"] - before["models"]["plain"]["rows"] == 5 and rows["kind"] == "tensor"
    assert after["time"] > before["time"] and after["memory_bytes"] > 1 << 24
    assert after["process"] == before["process"]


def test_the_dashboard_draws_what_happens(open_page, server):
    page = open_page(f"{server.url}/dashboard")
    page.wait_for_selector("#chart-memory polyline", state="attached")
    assert page.is_hidden("#try")
    ask_both(server.url, 6)
    page.wait_for_function("() => parseFloat(document.querySelector('#now-rate').textContent) > 0")
    page.wait_for_function("() => parseFloat(document.querySelector('#now-tokens').textContent) > 0")
    assert float(page.inner_text("#now-p99")) >= float(page.inner_text("#now-p50")) > 0
    assert float(page.inner_text("#now-memory")) > 16
    assert page.locator("#models tbody tr").count() == 2
    assert page.inner_text("#models tbody tr:first-child td:first-child") == "plain"
    page.click("#language")
    assert page.inner_text("#chart-latency h2") == "延迟" and "就绪" in page.inner_text("#models")
    page.click("#nav-try")
    page.wait_for_selector("#ask")
    assert page.is_hidden("#dashboard")
    page.go_back()
    page.wait_for_selector("#charts:visible")


@pytest.mark.parametrize("width", [320])
def test_the_dashboard_fits_the_window(open_page, server, width):
    page = open_page(f"{server.url}/#dashboard", viewport={"width": width, "height": 740})
    page.wait_for_selector("#chart-memory polyline", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_version_can_be_chosen(open_page, made):
    with BackgroundServer({"plain": made}) as running:
        wait_ready(running.url)
        page = open_page(running.url)
        page.wait_for_selector("#ask")
        assert page.is_hidden("#version")
        running.service.load("plain", made, "2", share=0.5)
        page.reload()
        page.wait_for_selector("#version:visible")
        for version in ("1", "2"):
            with page.expect_response(lambda response: "/page/model?name=plain" in response.url):
                page.select_option("#version", version)
            page.wait_for_function(
                "v => document.querySelector('#code').textContent.includes('/versions/' + v)", arg=version
            )
            page.click("#run")
            page.locator("#numbers", has_text=f"plain {version}").wait_for()


def test_with_a_key_nothing_but_files_is_open(open_page, made):
    with BackgroundServer({"plain": made}, api_key="k-1") as guarded:
        wait_ready(guarded.url)
        for path in ("/page/models", "/page/model?name=plain", "/page/numbers"):
            assert httpx.get(guarded.url + path).status_code == 401
        page = open_page(guarded.url)
        page.wait_for_selector("#key:visible")
        page.fill("#key", "k-1")
        page.press("#key", "Enter")
        page.wait_for_selector("#run")
        page.click("#run")
        page.wait_for_selector("#result .bars")


def test_every_file_has_its_type_and_policy_and_nothing_else_is_a_file(server):
    for path in OPEN_PATHS:
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200 and len(answer.content) > 200
        kind = {"css": "text/css", "js": "text/javascript"}.get(path.rpartition(".")[2], "text/html")
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for path in (
        "/page/",
        "/page/index.html",
        "/page/routes.py",
        "/page/..%2froutes.py",
        "/page/../server.py",
        "/page/app.js/",
    ):
        assert httpx.get(server.url + path).status_code in (404, 405)
    names = {path.name for path in PAGE.iterdir() if path.suffix in (".js", ".css")}
    assert {path.removeprefix("/page/") for path in page_files()} - {"/", "/dashboard"} == names


def test_no_file_names_another_host_or_makes_html_of_texts():
    for path in PAGE.iterdir():
        if path.suffix in (".js", ".css", ".html"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), path.name
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", html)


def test_every_text_is_there_in_both_languages():
    words = (PAGE / "words.js").read_text(encoding="utf-8")
    english, chinese = re.search(r"en: \{\n(.*?)\n  \},\n  zh: \{\n(.*?)\n  \},\n\};", words, re.DOTALL).groups()
    names = [set(re.findall(r"\b(\w+): [\"`({]", block)) for block in (english, chinese)]
    assert names[0] == names[1]
    sources = [
        path.read_text(encoding="utf-8")
        for path in PAGE.iterdir()
        if path.suffix in (".js", ".html") and path.stem != "words"
    ]
    used = {name for text in sources for name in re.findall(r'\bt\("(\w+)"\)|(?:text|label|hint): "(\w+)"', text)}
    used |= {(name, "") for text in sources for name in re.findall(r'data-(?:text|label|hint)="(\w+)"', text)}
    assert {one or other for one, other in used} <= names[0]


def test_every_control_has_a_name_and_the_colours_have_contrast(open_page, server):
    for scheme in ("light", "dark"):
        page = open_page(server.url, color_scheme=scheme)
        page.wait_for_selector("#ask")
        for model in ("words", "plain"):
            choose(page, model)
            nameless = page.evaluate(
                "[...document.querySelectorAll('input, select, textarea, button')].filter(item => !item.ariaLabel && "
                "!item.textContent.trim() && !(item.labels && item.labels[0]?.textContent.trim())).map(i => i.id)"
            )
            assert nameless == []
        names = ["page", "card", "ink", "soft", "accent", "accent-ink", "mine", "bad", "bad-page", "second"]
        colours = page.evaluate(
            "names => Object.fromEntries(names.map(name => "
            "[name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))",
            names,
        )
        pairs = "ink-card soft-card soft-page soft-mine ink-mine ink-page accent-card bad-card second-card".split()
        fronts = [tuple(pair.split("-")) for pair in pairs]
        for front, back in [*fronts, ("accent-ink", "accent"), ("bad", "bad-page"), ("card", "bad")]:
            assert contrast(colours[front], colours[back]) >= 4.5, (scheme, front, back)


def contrast(front: str, back: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.1)."""
    lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
