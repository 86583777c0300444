"""The pictures of the web page in the README: `python -m tools.screenshots` from the root of the repository.

Knows: how a visitor gets to what is shown. Needs Chromium, playwright, and fonts with Chinese characters.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ui.browser import Visitor, started_browser

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHAT = ("你好", "背诵静夜思", "3+5等于几")
CODE = """用 Python 写一个判断：
```python
def is_small(x: float) -> bool:
    return x < 1
```
条件是 $\\frac{x}{2} < \\sqrt{2}$，并且
$$\\int_0^1 x^2\\,dx = \\frac13$$"""
# Name, what the visitor's browser is, what is asked.
PICTURES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("web-chinese", {"viewport": {"width": 1000, "height": 860}}, CHAT),
    ("web-code", {"viewport": {"width": 1000, "height": 860}}, (CODE,)),
    ("web-dark", {"viewport": {"width": 1000, "height": 860}, "color_scheme": "dark"}, CHAT),
    ("web-phone", {"viewport": {"width": 375, "height": 740}, "locale": "en-US"}, ("hello", "who are you")),
)


@contextmanager
def served() -> Iterator[str]:
    """The address of a page with the demo model."""
    command = [sys.executable, "web_demo.py", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as server:
        assert server.stdout is not None
        try:
            yield re.findall(r"http://\S+", server.stdout.readline())[0]
        finally:
            server.terminate()


def take(browser: Any, address: str, name: str, profile: dict[str, Any], questions: tuple[str, ...]) -> None:
    """One picture."""
    visitor = Visitor(browser, address, **profile)
    page = visitor.page
    page.locator("#chat .example").first.wait_for()
    for number, question in enumerate(questions, start=1):
        page.locator("#box textarea").fill(question)
        page.locator("#box textarea").press("Enter")
        page.locator("#chat .bot.message").nth(number - 1).wait_for()
        page.locator("#box .submit-button").wait_for()
    page.wait_for_timeout(1500)
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / f"{name}.png")
    visitor.context.close()


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with served() as address, started_browser() as browser:
        for picture in PICTURES:
            take(browser, address, *picture)


if __name__ == "__main__":
    main()
