"""What writing a folder takes of memory: a shard, not the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.folders import make_folder, tiny_config, write_config

SHARD_BYTES = 10 * 10**6
PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from chatglm.conversion import convert_folder, examined, make_plan, quantize_folder
from chatglm.kernels.packing import quantize_rows

torch.set_num_threads(1)
source, target, shard_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
report = examined(source)
quantize_rows(torch.ones(64, 64), 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_folder(source, target / "copy", shard_bytes=shard_bytes)
copied = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = make_plan(report, bits=4, embedding_bits=8)
quantize_folder(report, target / "packed", plan, shard_bytes=shard_bytes)
packed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([1024 * (copied - before), 1024 * (packed - before)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the unit of ru_maxrss is another one")
def test_a_shard_is_in_memory_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_folder(source)  # tokenizer and all
    for path in source.glob("pytorch_model*"):
        path.unlink()
    config = tiny_config(hidden_size=1024, inner_hidden_size=4096, num_attention_heads=8, num_layers=3)
    write_config(source, config)
    size_bytes = write_constant_weights(source, config)
    assert size_bytes > 75 * 10**6
    arguments = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path), str(SHARD_BYTES)]
    output = subprocess.run(
        arguments, capture_output=True, text=True, check=True
    ).stdout  # forked, it would count shared pages
    copied, packed = json.loads(output)
    assert copied < 0.5 * size_bytes
    assert packed < 0.7 * size_bytes


def write_constant_weights(folder: Path, config: dict[str, object]) -> int:
    """Weights whose values do not matter, quickly; returns their size."""
    from chatglm.models import family_of

    family = family_of({"model_type": "chatglm"})
    shapes = family.empty_network(family.config(config)).state_dict()
    tensors = {name: torch.full(tensor.shape, 0.01, dtype=torch.float16) for name, tensor in shapes.items()}
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())
