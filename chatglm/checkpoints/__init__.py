"""Reading a model folder: its JSON files, weight files and tensors. Nothing of a checkpoint is executed."""

from chatglm.checkpoints.files import (
    WeightFiles,
    check_against_index,
    check_json_size,
    check_usable,
    find_weight_files,
    list_file,
    list_tensors,
    read_config,
    read_json,
    read_notes,
)
from chatglm.checkpoints.huge_pages import convert_into, new_tensor
from chatglm.checkpoints.reading import WeightReader, iter_tensors
from chatglm.checkpoints.stored import StoredTensor, total_bytes

__all__ = [
    "StoredTensor",
    "WeightFiles",
    "WeightReader",
    "check_against_index",
    "check_json_size",
    "check_usable",
    "convert_into",
    "find_weight_files",
    "iter_tensors",
    "list_file",
    "list_tensors",
    "new_tensor",
    "read_config",
    "read_json",
    "read_notes",
    "total_bytes",
]
