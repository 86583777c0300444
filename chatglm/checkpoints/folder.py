"""Whether a path is a model folder that can be read; if not, what is wrong with it and what was probably meant."""

from __future__ import annotations

import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from chatglm.errors import CheckpointError, MissingFileError, ModelNotFoundError

CONFIG_NAME = "config.json"
GIVE_A_MODEL = (
    "请给出模型文件夹、hub 名称或 demo，或先用 hf download 下载。"
    "Give the folder of a model, a hub id such as zai-org/chatglm-6b, or demo; "
    "to download: hf download zai-org/chatglm-6b --local-dir chatglm-6b"
)


def folder_error(folder: Path, remedy: str = GIVE_A_MODEL) -> CheckpointError | None:
    """Why nothing in `folder` can be read; None if it is a folder with something in it. `remedy`: what to give."""
    try:
        names = os.listdir(folder)
        os.stat(os.path.join(folder, "."))  # what is in it can be reached, too
    except NotADirectoryError:
        return _no_folder(folder)
    except PermissionError:
        return _no_permission(folder)
    except FileNotFoundError:
        return _absent(folder, remedy)
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        reason = getattr(error, "strerror", None) or error
        return ModelNotFoundError(f"无法读取 {folder}。It cannot be read: {reason}.", remedy)
    if names:
        return None
    return MissingFileError(f"文件夹 {folder} 是空的。The folder is empty.", remedy)


def missing_config(folder: Path) -> MissingFileError:
    """The error for a folder without config.json."""
    return MissingFileError(
        f"{folder} 缺少 {CONFIG_NAME}，不是完整的模型文件夹。{folder / CONFIG_NAME} is missing.",
        f"请从模型的页面下载 {CONFIG_NAME}。Download {CONFIG_NAME} of this model into {folder}.",
    )


def similar_folder(folder: Path) -> Path | None:
    """An existing folder whose path differs in the spelling of one name."""
    with suppress(OSError, ValueError):
        wrong = next((path for path in reversed([folder, *folder.parents]) if not path.exists()), folder)
        for name in get_close_matches(wrong.name, os.listdir(wrong.parent)):
            candidate = wrong.parent / name / folder.relative_to(wrong)
            if candidate.is_dir():
                return candidate
    return None


def _no_folder(path: Path) -> ModelNotFoundError:
    file = next((parent for parent in (path, *path.parents) if parent.is_file()), path)
    return ModelNotFoundError(
        f"{file} 是文件，不是模型文件夹。It is a file, not a model folder.",
        f"请给出所在的文件夹。Give the folder: {file.parent}",
    )


def _no_permission(folder: Path) -> ModelNotFoundError:
    blocked = next((path for path in reversed(folder.absolute().parents) if not os.access(path, os.X_OK)), folder)
    return ModelNotFoundError(
        f"没有读取 {blocked} 的权限。You may not read {blocked}.",
        f"请让其所有者放开读取权限。Ask its owner to run: chmod -R a+rX {blocked}",
    )


def _absent(folder: Path, remedy: str) -> ModelNotFoundError:
    link = next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None)
    if link is not None:
        return ModelNotFoundError(
            f"{link} 是失效的链接，指向 {os.readlink(link)}。It is a broken link to {os.readlink(link)}.",
            "请重新建立链接或直接给出文件夹。Make the link anew, or give the folder itself.",
        )
    problem = f"没有文件夹 {folder}。There is no folder {folder}."
    if (similar := similar_folder(folder)) is not None:
        return ModelNotFoundError(problem, f"是不是 {similar}？Did you mean {similar}? {remedy}")
    return ModelNotFoundError(problem, remedy)
