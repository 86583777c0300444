"""web_demo2.py with a model that does what the question says, so that no test waits for a long answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import streamlit as st

from chatglm.generation.deltas import Delta
from chatglm.messages import Message
from chatglm.ui.streamlit import streamlit_page
from tests.ui.fake_pipeline import FakeHandle, FakePipeline

MARKDOWN = """\
<script>document.title = "taken"</script><img src="http://outside.test/1.png" onerror="document.title = 'taken'">
![图](http://outside.test/2.png) [链接](javascript:alert(1)) 公式 $E=mc^2$ 价格 $5 和 $10 **重点：**正文

```C++
int main() { return 0 < 1; }
```
\\[
\\frac{1}{2}
\\]"""


class TalkingPipeline(FakePipeline):
    """Says line after line to "endless", lets "queued" wait, answers "markdown" with `MARKDOWN`, echoes the rest."""

    context_limit, precision = 1024, "fp16 on cuda:0"

    def submit(self, messages: Sequence[Message], *, cancel: threading.Event, **options: Any) -> FakeHandle:
        question = messages[-1].content
        handle = super().submit(messages, cancel=cancel, **options)
        if question == "queued":
            handle = FakeHandle(_wait(cancel))
            handle.queue_place = 3
        elif question == "endless":
            handle = FakeHandle(_talk(cancel))
        elif question == "markdown":
            handle = FakeHandle(iter([Delta(MARKDOWN, None, 5, 9), Delta("", "stop", 5, 9)]))
        return handle


def _wait(cancel: threading.Event) -> Iterator[Delta]:
    cancel.wait()
    print("a request was cancelled", flush=True)
    yield Delta("", "cancelled", 0, 0)


def _talk(cancel: threading.Event) -> Iterator[Delta]:
    number = 0
    while not cancel.is_set():
        number += 1
        yield Delta(f"第 {number} 行\n\n", None, 5, number)
        time.sleep(0.02)
    print("a request was cancelled", flush=True)
    yield Delta("", "cancelled", 5, number)


def _run_slowly() -> None:
    """So that whatever comes meanwhile ends this run before the page is drawn."""
    for _ in range(20):
        time.sleep(0.1)
        st.empty()


if __name__ == "__main__":
    if "slow" in st.query_params and "has_memory" in st.session_state:
        _run_slowly()
    streamlit_page.load = lambda _: TalkingPipeline()  # type: ignore[assignment,return-value]
    streamlit_page.show()
