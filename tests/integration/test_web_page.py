"""The page in a real browser: what a person sees and does. Skipped where Chromium or playwright is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from deepseek.serve import BackgroundServer
from tests.fake_serving import FakeModel

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def slow():
    return FakeModel("word ", step_seconds=0.01)


@pytest.fixture(scope="module")
def server(slow):
    models = {
        "hello": FakeModel("Hello <b>语</b> there.", end=True, max_length=200),
        "slow": slow,
        "short": FakeModel("x", max_length=16),
    }
    with BackgroundServer(models) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens the page; afterwards no script may have failed and nothing gone elsewhere."""
    contexts, problems, requested = [], [], []

    def opened(url: str, **options):
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if "Content Security" in line.text else None)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
    assert all(re.match(r"http://127\.0\.0\.1:|data:", url) for url in requested)


def ask(page, text: str) -> None:
    page.fill("#prompt", text)
    page.click("#send")


def finished(page) -> None:
    page.wait_for_selector("#send:visible")


def test_a_text_is_continued_and_the_numbers_are_shown(open_page, server):
    page = open_page(server.url)
    page.select_option("#model", "hello")
    ask(page, "Say: ")
    finished(page)
    assert page.inner_text("#log") == "Say: Hello <b>语</b> there."
    assert re.match(r"first token \d+ ms · 24 tokens · [\d.]+ tokens/s", page.inner_text("#numbers"))


def test_a_conversation_of_several_turns_goes_to_the_model_whole(open_page, server):
    page = open_page(server.url)
    page.click("#tab-chat")
    page.fill("#system", "Be brief.")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if request.method == "POST" else None)
    for text in ("first", "second"):
        page.fill("#prompt", text)
        page.press("#prompt", "Enter")
        page.locator(".turn.user", has_text=text).wait_for()
        finished(page)
    assert page.locator(".turn").count() == 4
    roles = [message["role"] for message in json.loads(sent[1])["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    page.click("#new")
    assert page.locator(".turn").count() == 0


def test_the_settings_are_what_is_sent(open_page, server):
    page = open_page(server.url)
    numbers = {"temperature": 0.5, "top_p": 0.6, "top_k": 7, "repetition_penalty": 1.5, "max_tokens": 16}
    for name, value in numbers.items():
        page.locator(f"#{name}").fill(str(value))
    page.fill("#seed", "3")
    page.fill("#stops", "zzz")
    with page.expect_request(lambda request: request.method == "POST") as caught:
        ask(page, "x")
    finished(page)
    body = json.loads(caught.value.post_data)
    assert body.pop("stream_options") == {"include_usage": True}
    assert body == {
        "model": "hello",
        "prompt": "x",
        **numbers,
        "stop": ["zzz"],
        "seed": 3,
        "stream": True,
    }


def test_stop_ends_the_answer_and_frees_the_model(open_page, server, slow):
    page = open_page(server.url)
    page.select_option("#model", "slow")
    ask(page, "x")
    page.locator("#log", has_text="word word").wait_for()
    page.click("#stop")
    finished(page)
    assert "stopped" in page.inner_text("#numbers")
    deadline = time.monotonic() + 10
    while slow.open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert slow.open == 0


def test_errors_are_shown_in_words_and_the_text_is_kept(open_page, server):
    page = open_page(server.url)
    page.select_option("#model", "short")
    ask(page, "far too long a text for this model")
    page.wait_for_selector("#error:visible")
    assert "longer than the model can read" in page.inner_text("#error")
    assert page.input_value("#prompt") == "far too long a text for this model"
    page.fill("#seed", "-1")
    ask(page, "x")
    assert "seed must be a whole number" in page.inner_text("#error")
    page.fill("#seed", "")
    page.route("**/v1/completions", lambda route: route.abort())
    ask(page, "x")
    page.locator("#error", has_text="can't be reached").wait_for()


def test_a_crash_of_the_model_is_told_with_the_id_only(open_page, caplog):
    model = FakeModel("fine ")
    model.fail_at = 2
    with BackgroundServer({"m": model}) as broken:
        page = open_page(broken.url)
        ask(page, "x")
        page.wait_for_selector("#error:visible")
        assert re.search(r"log has the details under [0-9a-f]{32}", page.inner_text("#error"))
        assert "secret" not in page.inner_text("body")


def test_the_api_key_is_asked_for_and_used(open_page):
    with BackgroundServer({"m": FakeModel("fine", end=True)}, api_key="k-1") as guarded:
        page = open_page(guarded.url)
        page.wait_for_selector("#key:visible")
        page.fill("#key", "k-1")
        page.press("#key", "Enter")
        page.wait_for_selector("#error", state="hidden")
        ask(page, "so ")
        finished(page)
        assert page.inner_text("#log") == "so fine"
        assert "k-1" not in page.inner_text("body")


def test_the_curl_command_does_the_same(open_page, server):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = open_page(server.url)
    page.fill("#prompt", 'It\'s "quoted" $HOME 语\n')
    page.click("#command summary")
    command = ["sh", "-c", page.inner_text("#curl")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello <b>语</b> there."


def test_chinese_by_the_browsers_language_and_by_the_button(open_page, server):
    page = open_page(server.url, locale="zh-CN")
    assert page.inner_text("#send") == "发送"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#language")
    assert page.inner_text("#send") == "Send"


def test_every_text_is_there_in_both_languages():
    page = Path(__file__).parents[2].joinpath("deepseek/serve/page/index.html").read_text(encoding="utf-8")
    english, chinese = re.search(r"en: \{(.*?)\n  \},\n  zh: \{(.*?)\n  \},\n\};", page, re.DOTALL).groups()
    names = [set(re.findall(r"\b(\w+): [\"`(]", block)) for block in (english, chinese)]
    assert names[0] == names[1]
    used = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', page)) | set(re.findall(r"words\.(\w+)", page))
    assert used <= names[0]


@pytest.mark.parametrize("width", [320, 360, 760, 1280])
def test_nothing_runs_out_of_the_window(open_page, server, width):
    page = open_page(server.url, viewport={"width": width, "height": 740})
    page.click("#command summary")
    ask(page, "w" * 60)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name_and_the_colours_have_contrast(open_page, server):
    for scheme in ("light", "dark"):
        page = open_page(server.url, color_scheme=scheme)
        nameless = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button')].filter("
            "item => !item.textContent.trim() && !(item.labels && item.labels[0]?.textContent.trim())).map(i => i.id)"
        )
        assert nameless == []
        colours = page.evaluate(
            "Object.fromEntries(['page', 'card', 'ink', 'soft', 'accent', 'accent-ink', 'mine', 'bad', 'bad-page']"
            ".map(name => [name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"
        )
        for front, back in [
            ("ink", "card"),
            ("soft", "card"),
            ("soft", "page"),
            ("soft", "mine"),
            ("ink", "mine"),
            ("accent-ink", "accent"),
            ("bad", "bad-page"),
            ("card", "bad"),
        ]:
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


def test_the_page_is_one_file_under_a_strict_policy(server):
    response = httpx.get(server.url)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", response.text)
