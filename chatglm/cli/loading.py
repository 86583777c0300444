"""From parsed flags to a loaded model, with progress and messages on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from chatglm.cli.console import StatusLine, report
from chatglm.cli.parsing import model_options
from chatglm.cli.settings import Settings
from chatglm.cli.signals import exit_on_interrupt, exit_on_sigterm
from chatglm.progress import ProgressBar

if TYPE_CHECKING:
    from chatglm.pipeline import Pipeline

LOADING = "正在加载模型，请稍候 / loading the model ..."
LOADING_CANCELLED = "已取消加载 / loading was cancelled."


def load_from_flags(
    arguments: argparse.Namespace, *, is_server: bool = False, on_licence: Callable[[str], object] = report
) -> Pipeline:
    """The model that `MODEL_FLAGS` name; raises ChatGLMError if it cannot be loaded.

    `is_server`: the program has threads of its own besides those that compute. `on_licence` gets the notice of the
    first start, which otherwise is a line of its own.
    """
    if is_server:
        # OpenMP's threads would spin while they wait for one that has lost its processor to a thread of the server,
        # and answers that take a second could then take minutes. Read by the library when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status = StatusLine(LOADING)

    try:
        from chatglm.loading.sources import LICENCE_NOTICE
        from chatglm.pipeline import load_pipeline  # imports torch: seconds, so not before the flags are checked

        def tell(message: str) -> None:
            status.clear()
            (on_licence if message == LICENCE_NOTICE else report)(message)

        with ProgressBar(sys.stderr) as bar:
            return load_pipeline(**model_options(arguments), progress=bar, report=tell)
    finally:
        status.clear()


def load_for_server(arguments: argparse.Namespace, settings: Settings) -> Pipeline:
    """`load_from_flags` with the engine started within the settings' limits; SIGTERM and Ctrl+C end the process."""
    with exit_on_sigterm(), exit_on_interrupt(LOADING_CANCELLED):
        pipeline = load_from_flags(arguments, is_server=True)
        engine = pipeline.start_engine(
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            memory_limit=settings.cache_memory,
            reuses_prefixes=settings.prefix_cache,
        )
        engine.warm_up()
    return pipeline
