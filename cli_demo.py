"""Chat with ChatGLM-6B in the terminal: `python cli_demo.py`, or with `--help` for everything it can do."""

from chatglm.cli.console import run_program
from chatglm.ui.terminal.terminal_app import main

if __name__ == "__main__":
    run_program(main)
