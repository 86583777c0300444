"""A checkpoint of a few thousand random weights, for tests that need a model that loads at once and talks nonsense.

Knows: which of the layouts of `tests/folders.py` is the quickest. Does not know what is tested with it.
"""

from __future__ import annotations

from pathlib import Path

from tests.folders import make_folder


def make_tiny_checkpoint(folder: Path) -> Path:
    """A whole model folder with ChatGLM-6B's context of 2048 tokens. Its answers hardly ever end by themselves."""
    make_folder(folder, "safetensors", max_sequence_length=2048)
    return folder
