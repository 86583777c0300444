"""`streamlit run web_demo2.py` draws the page; `python web_demo2.py` prints the command that does."""

from __future__ import annotations

import shlex
import sys
from typing import NoReturn

from chatglm.cli.console import require_packages
from chatglm.errors import ChatGLMError
from chatglm.ui.streamlit.streamlit_flags import COMMAND, parse

PACKAGES = {"streamlit": "streamlit", "markdown_it": "markdown-it-py", "latex2mathml": "latex2mathml"}


def main() -> None:
    """Draw the page where Streamlit runs this, else print how to start it and exit."""
    try:
        require_packages(PACKAGES)
    except ChatGLMError as error:
        _exit(error)
    from streamlit import runtime

    if runtime.exists():
        from chatglm.ui.streamlit.streamlit_page import show

        show()
        return
    try:
        parse()  # answers --help, too
    except ChatGLMError as error:
        _exit(error)
    command = f"{COMMAND} -- {shlex.join(sys.argv[1:])}".removesuffix(" -- ")
    _exit(ChatGLMError("这个页面由 Streamlit 运行。/ This page is run by Streamlit.", f"Run: {command}"))


def _exit(error: ChatGLMError) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(2)
