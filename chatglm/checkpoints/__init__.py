"""Reading a model folder: its JSON files, its weight files, the tensors inside.

Knows: safetensors and PyTorch files, single or sharded with an index, and how such files come out damaged.
Does not know: families, configurations, devices. Executes nothing from a checkpoint and asks no network.
"""

from chatglm.checkpoints.files import WeightFiles, check_usable, find_weight_files, read_config, read_json
from chatglm.checkpoints.stored import StoredTensor, total_bytes
from chatglm.checkpoints.tensors import check_against_index, is_view_of_file, iter_tensors, list_file, list_tensors

__all__ = [
    "StoredTensor",
    "WeightFiles",
    "check_against_index",
    "check_usable",
    "find_weight_files",
    "is_view_of_file",
    "iter_tensors",
    "list_file",
    "list_tensors",
    "read_config",
    "read_json",
    "total_bytes",
]
