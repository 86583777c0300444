"""Serve ChatGLM-6B to clients that poll for the answer: `python stream_api.py`, or with `--help` for more."""

from chatglm.cli.console import run_program
from chatglm.serving.commands import serve_polling

if __name__ == "__main__":
    run_program(serve_polling)
