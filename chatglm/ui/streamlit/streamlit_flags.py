"""The flags of the Streamlit page. Light: without Streamlit, the script must still be able to check them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from chatglm.cli.flags import ANSWER_FLAGS, MODEL_FLAGS
from chatglm.cli.parsing import Parser, add_flags, answer_options, check_answer_options
from chatglm.errors import InvalidRequestError

COMMAND = "streamlit run web_demo2.py"
DESCRIPTION = """\
在浏览器中与 ChatGLM-6B 对话（Streamlit）。不给 --model 时运行随附的迷你演示模型。
Chat with ChatGLM-6B in the browser (Streamlit). Without --model the bundled toy model runs."""
EPILOG = """\
地址 address:    streamlit run web_demo2.py --server.address 0.0.0.0 --server.port 6006 -- --model MODEL
                 Streamlit 的参数在 -- 之前，本页的参数在 -- 之后
                 Streamlit's own flags go before the --, those of this page after it"""


class StreamlitParser(Parser):
    """A parser that raises instead of exiting: the process belongs to Streamlit."""

    def error(self, message: str) -> NoReturn:
        raise InvalidRequestError(
            f"参数有误：{message.rstrip('.')}。", f"A flag is wrong; {COMMAND} -- --help lists all of them."
        )


def make_parser() -> StreamlitParser:
    """The parser of the page's own flags."""
    parser = StreamlitParser(prog=f"{COMMAND} --", description=DESCRIPTION, epilog=EPILOG)
    add_flags(parser, "模型 model", MODEL_FLAGS)
    add_flags(parser, "回答（滑块的初始值）answers (initial values of the sliders)", ANSWER_FLAGS)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags.

    Raises:
        InvalidRequestError: a flag or a variable is wrong.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_answer_options(parser, answer_options(arguments))
    return arguments
