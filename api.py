"""Serve ChatGLM-6B over HTTP: `python api.py`, or with `--help` for everything it can do."""

import sys

from chatglm.serving.commands import serve

if __name__ == "__main__":
    sys.exit(serve())
