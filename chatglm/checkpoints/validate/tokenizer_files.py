"""Is the tokenizer there, whole, and of the same release as the weights?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatglm.checkpoints import read_json
from chatglm.checkpoints.validate.expected_weights import describe_vocabulary
from chatglm.checkpoints.validate.findings import ValidatedFamily
from chatglm.errors import CheckpointError, DamagedFileError, MismatchError, MissingFileError

SETTINGS_NAME = "tokenizer_config.json"
ONE_RELEASE = "Take config.json, the tokenizer files and all weight files from one release."


def make_tokenizer(folder: Path, family: ValidatedFamily) -> Any:
    """The tokenizer of `folder`.

    Raises MissingFileError, PointerFileError, DamagedFileError or MismatchError if a file of it cannot be used.
    """
    if (folder / SETTINGS_NAME).exists():
        read_json(folder / SETTINGS_NAME)
    try:
        return family.read_tokenizer(folder)
    except CheckpointError:
        raise
    except Exception as error:  # SentencePiece has exceptions of its own for files it cannot read
        raise DamagedFileError(f"The tokenizer in {folder} cannot be read: {error}.", "Download it again.") from None


def compare_vocabulary(folder: Path, family: ValidatedFamily, tokenizer: Any, config: Any) -> Iterator[CheckpointError]:
    """How the tokenizer contradicts the configuration, if it does: at most one error."""
    path, spec = getattr(tokenizer, "vocab_file", folder), family.spec(config)
    wanted = describe_vocabulary(spec.vocab_size, spec)
    differing = [name for name in _shared_ids(tokenizer, config) if not _agree(tokenizer, config, name)]
    if not differing and tokenizer.vocab_size <= spec.vocab_size:
        return
    if not (folder / SETTINGS_NAME).exists():
        yield MissingFileError(
            f"{folder / SETTINGS_NAME} is missing, and without it the tokenizer does not fit {wanted}.",
            f"Download {SETTINGS_NAME} into {folder}.",
        )
    elif tokenizer.vocab_size > spec.vocab_size:
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


def _agree(tokenizer: Any, config: Any, name: str) -> bool:
    """Whether both have the same id; a configuration may have none, or list several, the tokenizer's among them."""
    wanted, own = getattr(config, name), getattr(tokenizer, name)
    return wanted is None or own in (wanted if isinstance(wanted, (list, tuple)) else [wanted])


def _shared_ids(tokenizer: Any, config: Any) -> list[str]:
    """Special tokens that both name. Padding is left out: the config.json of the first release has another one's."""
    names = [name for name in vars(config) if name.endswith("_token_id") and name != "pad_token_id"]
    return sorted(name for name in names if isinstance(getattr(tokenizer, name, None), int))
