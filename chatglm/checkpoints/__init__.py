"""Reading a model folder: its JSON files, its weight files, the tensors inside.

Knows: safetensors and PyTorch files, single or sharded with an index, how such files come out damaged, and how their
values are read or mapped.
Does not know: families, configurations, devices. Executes nothing from a checkpoint and asks no network.
"""

from chatglm.checkpoints.files import WeightFiles, check_usable, find_weight_files, read_config, read_json
from chatglm.checkpoints.memory_pages import convert_into, new_tensor
from chatglm.checkpoints.reading import WeightReader, iter_tensors
from chatglm.checkpoints.stored import StoredTensor, total_bytes
from chatglm.checkpoints.tensors import check_against_index, list_file, list_tensors

__all__ = [
    "StoredTensor",
    "WeightFiles",
    "WeightReader",
    "check_against_index",
    "check_usable",
    "convert_into",
    "find_weight_files",
    "iter_tensors",
    "list_file",
    "list_tensors",
    "new_tensor",
    "read_config",
    "read_json",
    "total_bytes",
]
