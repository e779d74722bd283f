"""Language models on the page, in a real browser: streaming, stop, conversation, settings, errors, keys, languages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from deepseek.serve import BackgroundServer
from deepseek.serve.hosted import Hosted
from tests.fake_serving import FakeModel
from tests.page_browser import browser, choose


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
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def open_page(chromium):
    yield lambda url, **options: ready(chromium.open(url, **options))
    chromium.close()


def ready(page):
    page.wait_for_selector("#ask, #key-box:visible")
    return page


def ask(page, text: str) -> None:
    page.fill("#prompt", text)
    page.click("#send")


def finished(page) -> None:
    page.wait_for_selector("#send:visible")


def test_a_text_is_continued_and_the_numbers_are_shown(open_page, server):
    page = open_page(server.url)
    choose(page, "hello")
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
    choose(page, "slow")
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
    choose(page, "short")
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
    command = ["sh", "-c", page.inner_text("#code")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello <b>语</b> there."


def test_chinese_by_the_browsers_language_and_by_the_button(open_page, server):
    page = open_page(server.url, locale="zh-CN", viewport={"width": 320, "height": 740})
    assert page.inner_text("#send") == "发送"
    choose(page, "hello")
    ask(page, "一行很长的文字" * 20)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#language")
    assert page.inner_text("#send") == "Send"


def test_the_python_command_does_the_same(open_page, server):
    page = open_page(server.url)
    choose(page, "hello")
    page.fill("#prompt", 'It\'s "quoted" \\ 语 🙂\n')
    page.click("#command summary")
    page.click("#as-python")
    command = [sys.executable, "-c", page.inner_text("#code")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello <b>语</b> there."


def test_all_of_it_works_by_keyboard(open_page, server):
    page = open_page(server.url)
    choose(page, "hello")
    page.focus("#tab-text")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-chat"
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert [name for name in reached if name in ("new", "log", "prompt", "send")] == ["new", "log", "prompt", "send"]
    page.focus("#prompt")
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    page.locator(".turn.assistant", has_text="there.").wait_for()
    finished(page)
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_a_version_of_a_language_model_can_be_chosen(open_page, server):
    service = server.service
    slot = service._slots["hello"]
    other = Hosted("hello", FakeModel("Second.", end=True), service.limits, version="2")
    other.verify()
    other.engine.start()
    slot.versions["2"] = other
    service.set_weight("hello", "2", 0.5)
    try:
        page = open_page(server.url)
        choose(page, "hello")
        page.wait_for_selector("#version:visible")
        for version, text in (("2", "Second."), ("1", "Hello")):
            with page.expect_response(lambda response: "/page/model?name=hello" in response.url):
                page.select_option("#version", version)
            page.wait_for_function(
                'v => document.querySelector(\'#code\').textContent.includes(`"version":"${v}"`)', arg=version
            )
            ask(page, "x")
            page.locator("#log", has_text=text).wait_for()
            finished(page)
    finally:
        service.set_weight("hello", "1", 1.0)
        service.unload("hello", "2")
