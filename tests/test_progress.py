"""What people see of a long wait, with a clock that the test turns."""

from __future__ import annotations

import io

import pytest

from chatglm.cells import cell_width
from chatglm.progress import ProgressBar

GB = 10**9


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(stream: io.StringIO, seconds: float, num_steps: int = 100, *, is_complete: bool = True) -> str:
    """Read 13 GB in so many seconds; returns what was written."""
    now = [100.0]
    with ProgressBar(stream, clock=lambda: now[0]) as bar:
        for step in range(num_steps + is_complete):
            now[0] = 100.0 + seconds * step / num_steps
            bar(13 * GB * step // num_steps, 13 * GB)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_a_log_has_a_line_every_ten_seconds() -> None:
    lines = watch(io.StringIO(), 42.0).splitlines()
    assert len(lines) == 4
    assert lines[1] == "加载 Loading  48% · 6.2 GB / 13.0 GB · 310 MB/s · 剩余 0:22 left"
    assert watch(io.StringIO(), 9.0) == ""


def test_a_terminal_has_a_bar_with_the_time_left_until_the_end() -> None:
    for is_complete in (True, False):
        text = watch(Tty(), 42.0, is_complete=is_complete)
        *drawn, blank, end = text.split("\r")[1:]
        assert len(drawn) == 98
        assert drawn[20].rstrip() == "加载 Loading ███░░░░░░░░░░░  22% · 2.9 GB / 13.0 GB · 310 MB/s · 剩余 0:33 left"
        assert "\n" not in text
        assert (blank.strip(), end) == ("", "")
        assert len(blank) >= cell_width(drawn[-1].rstrip())
    assert watch(Tty(), 0.4) == ""


def test_a_narrow_terminal_is_not_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert {cell_width(line) < 30 for line in watch(Tty(), 42.0).split("\r")} == {True}


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert len(watch(Tty(), 42.0).splitlines()) == 4


def test_nothing_is_known_of_the_speed_at_first_and_other_units_are_counted() -> None:
    now, stream = [0.0], io.StringIO()
    with ProgressBar(stream, title="Calibrating", unit=" layers", clock=lambda: now[0]) as bar:
        for now[0], num_done in ((0.0, 3), (10.0, 3), (4000.0, 4)):
            bar(num_done, 28)
    first, second = stream.getvalue().splitlines()
    assert first == "Calibrating  11% · 3 layers / 28 layers"
    assert second.endswith("14% · 4 layers / 28 layers · 0 layers/s · 剩余 26:40:00 left")
