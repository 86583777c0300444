"""Chat with ChatGLM-6B on a web page: `python web_demo.py`, or with `--help` for everything it can do."""

from chatglm.cli.console import run_program
from chatglm.ui.gradio.gradio_app import main

if __name__ == "__main__":
    run_program(main)
