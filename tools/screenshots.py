"""Takes the README's pictures of the Gradio page: `python -m tools.screenshots` from the root of the repository.

Needs Chromium, playwright, and fonts with Chinese characters.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ui.browser import Profile, started_browser

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHAT = ("你好", "背诵静夜思", "3+5等于几")
# The demo model writes no code: this conversation is opened from a file.
OPENED = [
    (
        "怎样用蒙特卡罗方法估计 $\\pi$？",
        """往正方形里均匀地撒点，落在四分之一圆内的比例趋近于 $\\frac{\\pi}{4}$：

```python
import random

def estimate(n: int) -> float:
    inside = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(n))
    return 4 * inside / n
```

误差的标准差约为

$$\\sigma = 4\\sqrt{\\frac{p(1-p)}{n}}, \\qquad p = \\frac{\\pi}{4}$$""",
    )
]
# Name, browser profile, questions.
PICTURES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("web-chinese", {"viewport": {"width": 1280, "height": 800}}, CHAT),
    ("web-code", {"viewport": {"width": 1280, "height": 800}}, ()),
    ("web-dark", {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"}, CHAT),
    (
        "web-phone",
        {"viewport": {"width": 375, "height": 740}, "locale": "en-US", "is_mobile": True, "has_touch": True},
        ("hello", "who are you"),
    ),
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


def take(browser: Any, address: str, name: str, options: dict[str, Any], questions: tuple[str, ...]) -> None:
    """One picture; of a conversation from a file where nothing is asked."""
    with Profile(browser, **options) as profile:
        page = profile.open(address)
        page.locator("#question").wait_for()
        for number, question in enumerate(questions, start=1):
            page.locator("#question").fill(question)
            page.locator("#question").press("Enter")
            page.locator("article.answer [data-action=retry]").nth(number - 1).wait_for()
        if not questions:
            content = json.dumps(OPENED, ensure_ascii=False).encode()
            file = {"name": "估计圆周率.json", "mimeType": "application/json", "buffer": content}
            page.locator("#file").set_input_files(file)
            page.locator("article.answer").wait_for()
            page.locator(".notice [data-action=close]").click()
        page.locator("#send .send").wait_for()
        page.mouse.move(0, 0)
        page.screenshot(path=IMAGES / f"{name}.png")


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with served() as address, started_browser() as browser:
        for picture in PICTURES:
            take(browser, address, *picture)


if __name__ == "__main__":
    main()
