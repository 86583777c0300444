"""Serve ChatGLM-6B to clients that poll for the answer: `python stream_api.py`, or with `--help` for more."""

import sys

from chatglm.serving.commands import serve_polling

if __name__ == "__main__":
    sys.exit(serve_polling())
