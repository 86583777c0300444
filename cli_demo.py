"""Chat with ChatGLM-6B in the terminal: `python cli_demo.py`, or with `--help` for everything it can do."""

import sys

from chatglm.ui.terminal.terminal_app import main

if __name__ == "__main__":
    sys.exit(main())
