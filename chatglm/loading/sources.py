"""From what the user typed ("demo", a path, a hub id) to a validated folder on this disk; the licence of weights."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from chatglm.cache import cache_folder, make_private_folder
from chatglm.checkpoints import find_weight_files
from chatglm.checkpoints.folder import CONFIG_NAME, folder_error, similar_folder
from chatglm.checkpoints.validate import ValidationReport, validate_folder
from chatglm.demo import CHECKPOINT, DEMO_NAME
from chatglm.errors import CheckpointError, ModelNotFoundError
from chatglm.models import family_of

HUB_CACHE = re.compile(r"models--.+--.+")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
# No *.py: code that comes with a checkpoint is neither needed nor wanted here.
HUB_FILES = ("*.json", "*.model", "*.safetensors", "*.bin")

LICENCE_NOTICE = "权重遵循 weights under MODEL_LICENSE (README.md)"
LICENCE_FLAG = "weights-licence-shown"


def find_folder(model: str | Path | None) -> Path:
    """The folder of `model`: None or "demo", a path, or a hub id (from the local cache, else downloaded).

    Raises ModelNotFoundError if there is none, and none can be fetched.
    """
    if model is None or str(model) in (DEMO_NAME, ""):
        if not CHECKPOINT.is_dir():
            raise ModelNotFoundError(
                f"The embedded demo model is absent from this installation ({CHECKPOINT}).",
                "Install the package again, or give a model with --model <chatglm-6b folder>.",
            )
        return CHECKPOINT
    try:
        path = Path(str(model)).expanduser()
    except RuntimeError:  # ~somebody, of whom no home folder is known
        path = Path(str(model))
    if (error := folder_error(path)) is None:
        return snapshot_of(path)
    if isinstance(model, str) and HUB_ID.fullmatch(model) and not os.path.lexists(path):
        return _from_hub(model)
    raise error


def snapshot_of(folder: Path) -> Path:
    """The folder itself, or what a folder `models--OWNER--NAME` of the hub's cache holds as its main version.

    Raises ModelNotFoundError if that is not there.
    """
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not HUB_CACHE.fullmatch(folder.name) or not snapshots.is_dir() or (folder / CONFIG_NAME).exists():
        return folder
    versions = [path.name for path in snapshots.iterdir()]
    try:
        wanted = main.read_text(encoding="utf-8", errors="replace").strip()[:100]
    except OSError:
        wanted = versions[0] if len(versions) == 1 else "refs/main"
    if wanted in versions:
        return snapshots / wanted
    raise ModelNotFoundError(
        f"{folder} 没有主版本。The hub's cache folder has no version {wanted!r} in {snapshots} "
        f"(there: {', '.join(sorted(versions)[:5]) or 'none'}).",
        "请重新下载，或给出其中的一个文件夹。Download the model again, or give one of the folders in snapshots.",
    )


def model_name(folder: Path) -> str:
    """The last part of the folder's path, or of the hub id for a version in the hub's cache."""
    is_cached = folder.parent.name == "snapshots" and HUB_CACHE.fullmatch(folder.parents[1].name)
    return folder.parents[1].name.rpartition("--")[2] if is_cached else folder.name


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
            f"本机没有文件夹 {model_id}，hub 上也没有可读取的同名模型。"
            f"There is no folder {model_id} here, and no model {model_id} on the hub that you may read.",
            f"{_meant(model_id)}请检查名称，私有模型需先登录。Check the name; `hf auth login` if it is private.",
        ) from None
    except Exception as error:  # network errors of whatever library huggingface_hub uses today
        partly = f"only a part of it is on this disk ({cached})" if cached else "it is not on this disk"
        raise ModelNotFoundError(
            f"本机没有文件夹 {model_id}，也无法从 hub 下载。"
            f"There is no folder {model_id} here, and the hub model {model_id} cannot be fetched "
            f"({type(error).__name__}); {partly}.",
            f"{_meant(model_id)}请在有网络的机器上下载后复制过来。Download it where there is a network "
            f"(`hf download {model_id} --local-dir {model_id.split('/')[1]}`), copy the folder here and give its path.",
        ) from None


def _meant(model_id: str) -> str:
    similar = similar_folder(Path(model_id))
    return f"是不是文件夹 {similar}？Did you mean the folder {similar}? " if similar is not None else ""


def _has_all_files(folder: Path) -> bool:
    """Whether a cached snapshot is complete: somebody may have fetched the tokenizer alone."""
    try:
        return (folder / "config.json").exists() and all(path.exists() for path in find_weight_files(folder).paths)
    except CheckpointError:
        return False


def examine(folder: str | Path, **options: Any) -> ValidationReport:
    """`validate_folder` with the registry of families."""
    folder = snapshot_of(Path(folder))
    return validate_folder(folder, family_of, default_family=family_of({"model_type": "chatglm"}), **options)


def checked_folder(path: str | Path) -> Path:
    """`path`, after validating the weights of this local folder, without its tokenizer; raises CheckpointError."""
    examine(path, needs_tokenizer=False).raise_first()
    return Path(path)


def licence_notice() -> str:
    """The notice at the first call of this user, later ""; again where the cache folder cannot be written."""
    try:
        flag = cache_folder() / LICENCE_FLAG
        if flag.exists():
            return ""
        make_private_folder(flag.parent)
        flag.touch()
    except (OSError, RuntimeError):  # RuntimeError: no home folder is known
        pass
    return LICENCE_NOTICE
