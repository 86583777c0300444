"""The printed line of every answer, and a stdout that is not read."""

from __future__ import annotations

import os

from chatglm.serving.request_log import MAX_PENDING, LinePrinter, answer_line


def test_API_06_upstreams_line() -> None:
    line = answer_line("2023-03-23 21:38:40", "你好", "你好👋！\n'ok'")
    assert line == '[2023-03-23 21:38:40] ", prompt:"你好", response:"' + repr("你好👋！\n'ok'") + '"'


def test_a_prompt_cannot_forge_lines() -> None:
    line = answer_line("t", "a\r\n[t] \x1b[2J\u2028\u202e", "b")
    assert line == r'''[t] ", prompt:"a\r\n[t] \x1b[2J\u2028\u202e", response:"'b'"'''


def test_lines_come_in_order() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as pipe:
        with LinePrinter(writing) as printer:
            for number in range(50):
                printer.print(f"行 {number}")
        os.close(writing)
        assert pipe.read().splitlines() == [f"行 {number}" for number in range(50)]


def test_a_full_pipe_does_not_block() -> None:
    """More than any pipe holds: printing returns, closing returns, and what was written is whole lines."""
    reading, writing = os.pipe()
    with LinePrinter(writing) as printer:
        for number in range(3 * MAX_PENDING):
            printer.print(f"{number} " + "x" * 1000)
    assert os.read(reading, 2) == b"0 "
    os.close(reading)  # the writing thread ends on its OSError
    os.close(writing)
