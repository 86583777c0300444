"""Somebody who chats on the Gradio page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe

from tests.ui.browser import PATIENCE_MS

# A question that an echo draws in many ways.
EVERYTHING = "```python\nx = 1  # note\n```\n| a | b |\n|-|-|\n| 1 | 2 |\n\n$$x^2$$ `code` [link](http://a.b)"


class Person:
    """Somebody who chats on a page that was just opened."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.locator("#question")
        self.questions = page.locator("article.question")
        self.bubbles = page.locator("article.question .bubble")
        self.answers = page.locator("article.answer")
        self.texts = page.locator("article.answer .text")
        self.notices = page.locator("#notices")
        self.titles = page.locator("#conversations .title")
        self.scroller = page.locator("#scroller")
        self.box.wait_for()
        self.has_keyboard = page.evaluate("matchMedia('(pointer: fine)').matches")

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.page.close()

    def look(self) -> None:
        """Bring the page to the front: what is behind is drawn once a second."""
        self.page.bring_to_front()

    def ask(self, question: str) -> None:
        self.look()
        self.box.fill(question)
        if self.has_keyboard:
            self.box.press("Enter")
        else:
            self.page.locator("#send").tap()

    def ask_and_wait(self, question: str) -> str:
        """The answer."""
        self.ask(question)
        self.bubbles.get_by_text(question, exact=True).last.wait_for()
        return self.answer()

    def answer(self) -> str:
        """Wait until the last answer is finished; its text."""
        self.page.locator("article.answer:last-child [data-action=retry]:visible").wait_for()
        return str(self.texts.last.inner_text())

    def note(self) -> str:
        return str(self.answers.last.locator(".note").inner_text())

    def distance(self) -> int:
        """From the end of the conversation, in pixels."""
        return int(self.scroller.evaluate("e => e.scrollHeight - e.clientHeight - e.scrollTop"))

    def do(self, action: str, round_: int = -1, of: str = "answer") -> None:
        """Press a button under a question or an answer."""
        self.look()
        article = self.page.locator(f"article.{of}").nth(round_)
        article.hover()
        article.locator(f"[data-action={action}]").click()

    def stop(self) -> None:
        self.look()
        self.page.get_by_role("button", name=re.compile("^(停止|Stop)$")).click()

    def until(self, condition: Callable[[], Any]) -> Any:
        """Waits in the browser's own time."""
        for _ in range(PATIENCE_MS // 50):
            if found := condition():
                return found
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {self.page.locator('#page').inner_text()!r}")

    def choose(self, **settings: str) -> None:
        if not self.page.locator("#settings[open]").count():
            self.page.locator("#settings summary").click()
        for name, value in settings.items():
            self.page.locator(f"#{name}").fill(value)

    def chosen(self, *names: str) -> list[str]:
        return [self.page.locator(f"#{name}").input_value() for name in names]

    def open_file(self, name: str, data: str | bytes) -> None:
        buffer = data if isinstance(data, bytes) else data.encode()
        self.page.locator("#file").set_input_files({"name": name, "mimeType": "application/json", "buffer": buffer})

    def do_listed(self, action: str, title: str) -> Any:
        """Press a button of a conversation in the list; returns the list's item."""
        self.look()
        item = self.page.locator("#conversations li", has=self.page.get_by_title(title, exact=True))
        item.hover()
        item.locator(f"[data-action={action}]").click()
        return item

    def rename(self, title: str, new: str) -> None:
        self.do_listed("rename", title)
        field = self.page.locator("#conversations input")
        field.fill(new)
        field.press("Enter")

    def undo(self) -> None:
        self.notices.get_by_role("button", name="撤销").click()

    def focused(self) -> str:
        """The id of what has the focus."""
        return str(self.page.evaluate("document.activeElement.id"))

    def obstacles(self) -> list[tuple[str, str]]:
        """What axe finds serious in the page as it is, in both themes."""
        found = []
        for theme in ("light", "dark"):
            self.page.evaluate("(theme) => (document.documentElement.style.colorScheme = theme)", theme)
            found += Axe().run(self.page).response["violations"]
        return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]

    def copied(self) -> str:
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def new(self) -> None:
        self.page.keyboard.press("Control+Shift+O")
        self.page.locator("#starters").wait_for()

    def swipe_down(self) -> None:
        """Move a finger down over the conversation, which scrolls it up."""
        session = self.page.context.new_cdp_session(self.page)
        for number in range(12):
            kind = "touchMove" if number else "touchStart"
            points = [{"x": 180, "y": 200 + 25 * number}]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        self.page.wait_for_timeout(200)  # a finger that rests throws nothing
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def reload(self) -> None:
        self.page.reload()
        self.box.wait_for()
