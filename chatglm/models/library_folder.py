"""What transformers reads of a local model folder, made safe and complete: nothing in it names code to run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatglm.checkpoints import find_weight_files, read_json
from chatglm.errors import DamagedFileError, InvalidRequestError
from chatglm.generation.config import library_settings

GENERATION_NAME = "generation_config.json"


def stored_generation_config(folder: Path) -> Any:
    """The folder's generation_config.json as transformers' object, or None; raises CheckpointError."""
    from transformers import GenerationConfig

    path = folder / GENERATION_NAME
    if not path.exists():
        return None
    try:
        return GenerationConfig(**library_settings(read_json(path)))
    except (InvalidRequestError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} holds a value that cannot be used: {error}", "Delete this file.") from None


@contextmanager
def with_index_metadata(folder: Path) -> Iterator[Path]:
    """The folder, or one of links to its files whose index has `metadata`: transformers cannot do without."""
    index = find_weight_files(folder).index
    content = read_json(index) if index is not None else {"metadata": {}}
    if index is None or isinstance(content.get("metadata"), dict):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="chatglm-") as name:
        try:
            for path in folder.iterdir():
                if path != index:
                    (Path(name) / path.name).symlink_to(path.resolve())
        except OSError as error:  # Windows lets few people make links
            raise DamagedFileError(
                f"{index} has no `metadata`, which transformers needs ({error.strerror}).",
                'Add "metadata": {} to it, or use chatglm.load_pipeline().',
            ) from None
        (Path(name) / index.name).write_text(json.dumps(content | {"metadata": {}}), encoding="utf-8")
        yield Path(name)
