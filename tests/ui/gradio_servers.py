"""Gradio pages that this process serves to a browser."""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from anyio import open_file  # noqa: F401  a server's thread would import it, and two threads that compile break CPython 3.11

from chatglm.cli.parsing import model_options
from chatglm.engine.decoder import BatchDecoder
from chatglm.pipeline import load_pipeline
from chatglm.ui.gradio.gradio_app import make_parser, serving

# Not `importorskip`: each worker would import gradio, which takes seconds.
NEEDS_GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="The page needs gradio: pip install -r requirements-web.txt"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """The address of a page with a real model."""
    arguments = make_parser().parse_args(flags)
    with load_pipeline(**model_options(arguments)) as pipeline:
        pipeline.start_engine(max_running=arguments.max_running, max_waiting=arguments.max_waiting)
        port = free_port()
        with serving(pipeline, arguments, port):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def served_echo(pipeline: Any, port: int) -> Iterator[str]:
    """The address of a page with a pipeline that only looks like one."""
    with serving(pipeline, make_parser().parse_args([]), port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def slow_steps() -> Iterator[None]:
    """Fifty tokens a second, so that an answer lasts as long as a test."""
    decode = BatchDecoder.decode

    def decode_slowly(decoder: BatchDecoder, *arguments: Any) -> Any:
        time.sleep(0.02)
        return decode(decoder, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchDecoder, "decode", decode_slowly)
        yield
