"""The model arguments of training as the flags of a page.

Knows: both vocabularies. Does not know what a flag does. Stays light: the page's `--help` must not wait for torch.
"""

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
# A trained prefix says these of itself; the others never had an effect.
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
    """The flags that say the same to the page; what is no argument of training is left as it is.

    Ends the process with one line if a JSON file was named that cannot be read.
    """
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
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        sys.exit(str(ChatGLMError(f"{path} cannot be read: {error}.", "Give a JSON file of arguments, or flags.")))
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
