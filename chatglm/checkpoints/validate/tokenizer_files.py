"""Is the tokenizer there, whole, and of the same release as the weights?

Knows: the special tokens whose ids configuration and tokenizer must agree on. Does not know how text is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatglm.checkpoints import check_usable, read_json
from chatglm.checkpoints.validate.expected_weights import describe_vocabulary
from chatglm.errors import CheckpointError, DamagedFileError, MismatchError, MissingFileError
from chatglm.models import Family

SETTINGS_NAME = "tokenizer_config.json"
SHARED_IDS = ("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id")
ONE_RELEASE = "Take config.json, the tokenizer files and all weight files from one release."


def make_tokenizer(folder: Path, family: Family) -> Any:
    """The tokenizer of `folder`.

    Raises:
        MissingFileError, PointerFileError, DamagedFileError, MismatchError: a file of it cannot be used.
    """
    for name in family.tokenizer_files:
        check_usable(folder / name)
    if (folder / SETTINGS_NAME).exists():
        read_json(folder / SETTINGS_NAME)
    try:
        return family.read_tokenizer(folder)
    except CheckpointError:
        raise
    except Exception as error:  # the library and SentencePiece have exceptions of their own for files they cannot read
        raise DamagedFileError(f"The tokenizer in {folder} cannot be read: {error}.", "Download it again.") from None


def compare_vocabulary(folder: Path, family: Family, tokenizer: Any, config: Any) -> Iterator[CheckpointError]:
    """How the tokenizer contradicts the configuration, if it does: at most one error."""
    path = folder / next(iter(family.tokenizer_files))
    wanted = describe_vocabulary(config.vocab_size)
    differing = [name for name in SHARED_IDS if getattr(tokenizer, name) != getattr(config, name)]
    if not differing and tokenizer.vocab_size <= config.vocab_size:
        return
    if not (folder / SETTINGS_NAME).exists():
        yield MissingFileError(
            f"{folder / SETTINGS_NAME} is missing, and without it the tokenizer does not fit {wanted}.",
            f"Download {SETTINGS_NAME} into {folder}.",
        )
    elif tokenizer.vocab_size > config.vocab_size:
        yield MismatchError(
            f"The tokenizer {path} has {tokenizer.vocab_size} ids, but {folder / 'config.json'} says {wanted}.",
            ONE_RELEASE,
        )
    else:
        name = differing[0]
        yield MismatchError(
            f"In the tokenizer {path} {name} is {getattr(tokenizer, name)}, but {folder / 'config.json'} says "
            f"{getattr(config, name)}, and {wanted}.",
            ONE_RELEASE,
        )
