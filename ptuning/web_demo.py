"""The Gradio page with a trained prefix; takes the arguments of `main.py`, one JSON file of them, or its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from chatglm.training.web_arguments import page_flags
from chatglm.ui.gradio.gradio_app import main

if __name__ == "__main__":
    sys.exit(main(page_flags(sys.argv[1:])))
