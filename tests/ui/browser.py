"""A real Chromium for tests of pages."""

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
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # nothing outside is reached
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


class Profile:
    """A browser profile. An attempt to reach anything outside this machine is an error at the end.

    Requests are listened to, not routed: a routed context caches nothing, and opening a page takes three times as long.
    """

    def __init__(self, browser: Any, **options: Any) -> None:
        self._outside: list[str] = []
        self._context = browser.new_context(**{"locale": "zh-CN", **options})
        self._context.set_default_timeout(PATIENCE_MS)
        self._context.on("request", self._note)

    def open(self, address: str) -> Any:
        """A page of its own; the second of an address is quicker, since its files are here already."""
        page = self._context.new_page()
        page.goto(address)
        return page

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._context.close()
        assert self._outside == []

    def _note(self, request: Any) -> None:
        if not _is_here(request.url):
            self._outside.append(request.url)


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in ("127.0.0.1", "localhost")
