"""The web page with a trained prefix, with the arguments of `main.py` (or one JSON file of them) or its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from chatglm.training.web_arguments import page_flags
from chatglm.ui.gradio.launch import main

if __name__ == "__main__":
    sys.exit(main(page_flags(sys.argv[1:])))
