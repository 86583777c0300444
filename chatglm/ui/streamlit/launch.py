"""`streamlit run web_demo2.py`: from flags to a page; `python web_demo2.py`: a sentence that says how it is started.

Knows: what can be wrong before there is a page. Does not know what is on it (`streamlit_page.py`). Stays light: without
Streamlit, it must still be able to say so.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from chatglm.cli.flags import (
    ANSWER_FLAGS,
    MODEL_FLAGS,
    Parser,
    add_flags,
    answer_options,
    check_answer_options,
)
from chatglm.errors import ChatGLMError, InvalidRequestError

COMMAND = "streamlit run web_demo2.py"
DESCRIPTION = """\
在浏览器中与 ChatGLM-6B 对话（Streamlit）。不给 --model 时运行随附的迷你演示模型。
Chat with ChatGLM-6B in the browser (Streamlit). Without --model the bundled toy model runs."""
EPILOG = """\
地址 address:    streamlit run web_demo2.py --server.address 0.0.0.0 --server.port 6006 -- --model MODEL
                 Streamlit 的参数在 -- 之前，本页的参数在 -- 之后
                 Streamlit's own flags go before the --, those of this page after it"""


class PageParser(Parser):
    """A parser for a program that goes on after a wrong flag: there the process belongs to Streamlit."""

    def error(self, message: str) -> NoReturn:
        raise InvalidRequestError(
            f"参数有误：{message.rstrip('.')}。", f"A flag is wrong; {COMMAND} -- --help lists all of them."
        )


def make_parser() -> PageParser:
    """All flags of the page."""
    parser = PageParser(prog=f"{COMMAND} --", description=DESCRIPTION, epilog=EPILOG)
    add_flags(parser, "模型 model", MODEL_FLAGS)
    add_flags(parser, "回答（滑块的初始值）answers (where the sliders begin)", ANSWER_FLAGS)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags.

    Raises:
        InvalidRequestError: one of them, or a variable, is wrong.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_answer_options(parser, answer_options(arguments))
    return arguments


def main() -> None:
    """Draw the page, where Streamlit runs this; else say how to start it and exit."""
    if find_spec("streamlit") is None:
        _leave(ChatGLMError("这个页面需要 streamlit。/ This page needs streamlit.", "Run: pip install streamlit"))
    from streamlit import runtime

    if runtime.exists():
        from chatglm.ui.streamlit.page import show

        show()
    else:
        _refer()


def _refer() -> NoReturn:
    """Answer `--help`, or give the command line that was meant."""
    try:
        parse()
    except ChatGLMError as error:
        _leave(error)
    command = f"{COMMAND} -- {shlex.join(sys.argv[1:])}".removesuffix(" -- ")
    _leave(ChatGLMError("这个页面由 Streamlit 运行。/ This page is run by Streamlit.", f"Run: {command}"))


def _leave(error: ChatGLMError) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(2)
