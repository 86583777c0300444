"""From what the user typed to a folder on this disk: "demo", a path, or a hub id.

Knows: the local cache of huggingface_hub and what fails without a network. Does not look into the folder's files.
"""

from __future__ import annotations

import re
from pathlib import Path

from chatglm.checkpoints import find_weight_files
from chatglm.demo import CHECKPOINT, DEMO_NAME
from chatglm.errors import CheckpointError, ModelNotFoundError

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# No *.py: code that comes with a checkpoint is neither needed nor wanted here.
HUB_FILES = ("*.json", "*.model", "*.safetensors", "*.bin")


def is_demo_name(model: str | Path | None) -> bool:
    """Whether this asks for the embedded demo model."""
    return model is None or str(model) in (DEMO_NAME, "")


def find_folder(model: str | Path | None) -> Path:
    """The folder of `model`: None or "demo", a path, or a hub id (taken from the local cache, else downloaded).

    Raises:
        ModelNotFoundError: nothing of that name here, and none that can be fetched.
    """
    if is_demo_name(model):
        if not CHECKPOINT.is_dir():
            raise ModelNotFoundError(
                f"The embedded demo model is absent from this installation ({CHECKPOINT}).",
                "Install the package again, or give a model with --model <chatglm-6b folder>.",
            )
        return CHECKPOINT
    path = Path(str(model)).expanduser()
    if path.exists():
        return path
    if isinstance(model, str) and HUB_ID.fullmatch(model):
        return _from_hub(model)
    raise ModelNotFoundError(
        f"There is no folder {path}.", 'Give the folder of a model, a hub id such as zai-org/chatglm-6b, or "demo".'
    )


def _from_hub(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(model_id, local_files_only=True))
    except Exception:  # the library raises a dozen kinds; each means that nothing usable is cached
        cached = None
    if cached is not None and _has_all_files(cached):
        return cached
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(HUB_FILES)))
    except RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"There is no folder {model_id} here, and no model {model_id} on the hub that you may read.",
            "Check the name; log in with `hf auth login` if the model is private.",
        ) from None
    except Exception as error:  # network errors of whatever library huggingface_hub uses today
        partly = f"only a part of it is on this disk ({cached})" if cached else "it is not on this disk"
        raise ModelNotFoundError(
            f"There is no folder {model_id} here, and the hub model {model_id} cannot be fetched "
            f"({type(error).__name__}); {partly}.",
            f"Download it where there is a network (`hf download {model_id} --local-dir {model_id.split('/')[1]}`), "
            "copy the folder here and give its path as --model.",
        ) from None


def _has_all_files(folder: Path) -> bool:
    """Whether a cached snapshot is more than, say, the tokenizer that someone fetched alone."""
    try:
        return (folder / "config.json").exists() and all(path.exists() for path in find_weight_files(folder).paths)
    except CheckpointError:
        return False
