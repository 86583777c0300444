"""`streamlit run web_demo2.py` draws the page; `python web_demo2.py` prints the command that does."""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from typing import NoReturn

from chatglm.errors import ChatGLMError
from chatglm.ui.streamlit.streamlit_flags import COMMAND, parse


def main() -> None:
    """Draw the page where Streamlit runs this, else print how to start it and exit."""
    if find_spec("streamlit") is None:
        _exit(ChatGLMError("这个页面需要 streamlit。/ This page needs streamlit.", "Run: pip install streamlit"))
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
