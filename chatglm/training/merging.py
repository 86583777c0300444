"""A LoRA update merged into its base, written as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatglm.checkpoints import list_tensors, total_bytes
from chatglm.conversion.writing import new_folder
from chatglm.errors import InvalidRequestError
from chatglm.loading import load
from chatglm.loading.lora_checkpoint import find_lora, merge_lora

EMBEDDING = "transformer.word_embeddings.weight"


def merge(base: Path, update: str | Path, target: Path) -> None:
    """Write the model in `base` with the update merged to a new folder, in the dtype in which the base is stored.

    Raises:
        InvalidRequestError: the base is quantized.
        ChatGLMError: `target` exists, or cannot be written.
        CheckpointError: base or update cannot be used.
    """
    stored = list_tensors(base)
    if not all(tensor.dtype.is_floating_point for tensor in stored.values()):
        raise InvalidRequestError(
            f"{base} is quantized: an update cannot be merged into packed weights.",
            "Attach it with --lora-checkpoint, or merge into the unquantized folder and quantize that.",
        )
    lora = find_lora(update)
    with new_folder(target, total_bytes(stored.values())) as folder:
        loaded: Any = load(base, device="cpu", dtype=stored[EMBEDDING].dtype)
        merge_lora(loaded.model, lora)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
