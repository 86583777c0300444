"""Serve ChatGLM-6B over HTTP: `python api.py`, or with `--help` for everything it can do."""

from chatglm.cli.console import run_program
from chatglm.serving.commands import serve

if __name__ == "__main__":
    run_program(serve)
