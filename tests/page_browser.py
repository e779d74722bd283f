"""The page in a real Chromium: every page opened here must make no error and ask no other host."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
_EXPECTED = re.compile(r"Failed to load resource: the server responded with a status of [45]|ERR_FAILED")


class Browser:
    """Opens pages, and keeps what went wrong in them."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self._contexts: list[Any] = []
        self.problems: list[str] = []
        self.requested: list[str] = []

    def open(self, url: str, **options: Any) -> Any:
        """Return a page at `url`; `options` as for playwright's contexts."""
        context = self._chromium.new_context(
            **{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options}
        )
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._told)
        page.on("request", lambda request: self.requested.append(request.url))
        page.goto(url)
        return page

    def _told(self, line: Any) -> None:
        if line.type in ("error", "warning") and not _EXPECTED.search(line.text):
            self.problems.append(line.text)

    def close(self) -> None:
        """Close the pages; nothing may have gone wrong."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        problems, self.problems = self.problems, []
        requested, self.requested = self.requested, []
        assert problems == []
        assert all(re.match(r"http://127\.0\.0\.1:|data:|blob:http://127\.0\.0\.1:", url) for url in requested)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Yield a browser. Skips where Chromium or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield Browser(chromium)
        chromium.close()


def wait_ready(url: str) -> None:
    """Wait until all models of a server are ready."""
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def choose(page: Any, model: str) -> None:
    """Choose a model and wait until its form stands there."""
    with page.expect_response(lambda response: f"/page/model?name={model}" in response.url):
        page.select_option("#model", model)
    page.wait_for_function("() => document.querySelector('#ask') !== null")
