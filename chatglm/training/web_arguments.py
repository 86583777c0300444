"""Model arguments of training as flags of the web page; without torch, so that its `--help` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from chatglm.errors import ChatGLMError

RENAMED = {
    "model_name_or_path": "--model",
    "ptuning_checkpoint": "--ptuning-checkpoint",
    "lora_checkpoint": "--lora-checkpoint",
    "quantization_bit": "--quantize",
    "dtype": "--dtype",
}
# A trained prefix holds the first two; the others never had an effect.
NOT_NEEDED = (
    "pre_seq_len",
    "prefix_projection",
    "config_name",
    "tokenizer_name",
    "cache_dir",
    "use_fast_tokenizer",
    "model_revision",
    "use_auth_token",
    "resize_position_embeddings",
)


def page_flags(argv: Sequence[str]) -> list[str]:
    """The corresponding flags; others are left as they are. Exits with a message if a JSON file cannot be read."""
    words = _of_file(Path(argv[0])) if len(argv) == 1 and argv[0].endswith(".json") else list(argv)
    flags: list[str] = []
    is_left_out = False
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            flags += [] if is_left_out else [word]
            continue
        name = name.replace("-", "_")
        is_left_out = name in NOT_NEEDED
        if name in RENAMED:
            flags += [RENAMED[name], *([value] if equals else [])]
        elif not is_left_out:
            flags.append(word)
    return flags


def _of_file(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(str(ChatGLMError(f"{path} cannot be read: {error}.", "Give a JSON file of arguments, or flags.")))
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
