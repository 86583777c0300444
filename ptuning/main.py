"""Train and evaluate: `python main.py --do_train ...`, or with `--help` for everything it can do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from chatglm.training.run import main

if __name__ == "__main__":
    sys.exit(main())
