"""The terminal chat on a pipeline that echoes: `python -c "from tests.ui.fake_chat import main; main()" FLAGS`."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator

from chatglm.cli.console import run_program
from chatglm.generation.deltas import Delta
from chatglm.ui.terminal import terminal_app
from tests.ui.fake_pipeline import FakePipeline

POLL_S = 0.005


class WaitingPipeline(FakePipeline):
    """To "keys N ..." the answer is "..." and ends once N bytes wait at the keyboard; to "forever", at Ctrl+C."""

    def _answer(self, question: str, cancel: threading.Event) -> Iterator[Delta]:
        if question == "forever":
            yield Delta("on and on", None, 5, 1)
            while not cancel.is_set():
                time.sleep(POLL_S)
            yield Delta("", "cancelled", 5, 1)
        elif question.startswith("keys "):
            _, num_keys, text = question.split(" ", 2)
            yield Delta(text, None, 5, 1)
            while num_waiting() < int(num_keys) and not cancel.is_set():
                time.sleep(POLL_S)
            yield Delta("", "stop", 5, 1)
        else:
            yield from super()._answer(question, cancel)


def num_waiting() -> int:
    """Bytes at the keyboard that nobody has read."""
    return int(struct.unpack("i", fcntl.ioctl(0, termios.FIONREAD, b"\0" * 4))[0])


def has_echo() -> bool:
    return bool(termios.tcgetattr(0)[3] & termios.ECHO)


def main() -> None:
    """The chat; with the flag --in-shell, started by a parent that stops and continues it as a shell does."""
    terminal_app.load_from_flags = lambda arguments, **options: WaitingPipeline()
    if "--in-shell" in sys.argv:
        sys.argv.remove("--in-shell")
        if child := os.fork():
            run_job(child)
        os.setpgid(0, 0)
        while os.tcgetpgrp(0) != os.getpgrp():
            time.sleep(POLL_S)
    run_program(terminal_app.main)


def run_job(child: int) -> None:
    """Each time the job stops, say so and whether keys are echoed, and bring it back after a line from the keyboard."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(child, child)
    while True:
        os.tcsetpgrp(0, child)
        _, status = os.waitpid(child, os.WUNTRACED)
        os.tcsetpgrp(0, os.getpgrp())
        if not os.WIFSTOPPED(status):
            os._exit(os.waitstatus_to_exitcode(status))
        print(f"\r\nstopped, echo {has_echo()}", flush=True)
        sys.stdin.readline()
        os.kill(child, signal.SIGCONT)
