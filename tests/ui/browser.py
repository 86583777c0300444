"""A real Chromium for tests of pages, and the page of one visitor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000


@contextmanager
def started_browser() -> Iterator[Any]:
    """A headless Chromium of this machine; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("There is no Chromium here; on Debian and Ubuntu: apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A browser profile with a page open; nothing outside this machine is reached, and attempts are counted."""

    def __init__(self, browser: Any, address: str, **profile: Any) -> None:
        self.outside: list[str] = []
        self._address = address
        self.context = browser.new_context(**{"locale": "zh-CN", **profile})
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.route(lambda url: not _is_here(url), self._refuse)
        self.page = self.context.new_page()
        self.open()

    def open(self) -> None:
        """Open the page anew, which is quicker than another profile: the browser has its files already."""
        self.page.goto(self._address)

    def _refuse(self, route: Any) -> None:
        self.outside.append(route.request.url)
        route.abort()


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in ("127.0.0.1", "localhost")
