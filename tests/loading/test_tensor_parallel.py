"""One network over two processes that torchrun starts: the same scores as in one, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm.errors import DeviceError, InvalidRequestError
from chatglm.loading import load
from chatglm.loading.tensor_parallel import Shard
from chatglm.model_spec import LinearSpec
from chatglm.models import family_of
from chatglm.nn.sharding import check_ranks, shard_range, shard_rows
from tests import forking
from tests.folders import make_folder
from tests.loading.folders import quantized_folder
from tests.loading.sharing import CASES

pytestmark = [pytest.mark.xdist_group("programs"), pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BOUND = 1e-5
ODD_VOCABULARY = 429  # one more than the tiny tokenizer needs
SPLIT_LAYERS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
Seen = list[dict[str, Any]]


def _make_folders(folder: Path) -> None:
    make_folder(folder / "float", "safetensors", dtype=torch.float32)
    make_folder(folder / "untied", "bin", dtype=torch.float32, tied=False, tie_word_embeddings=False)
    make_folder(folder / "old", "bin_old", dtype=torch.float32)
    make_folder(folder / "prefix", "safetensors", dtype=torch.float32, pre_seq_len=3)
    make_folder(folder / "one head", "safetensors", num_attention_heads=1)
    make_folder(folder / "odd", "safetensors", vocab_size=ODD_VOCABULARY)
    quantized_folder(folder / "int8", 8)
    quantized_folder(folder / "int4", 4)
    quantized_folder(folder / "groups", 4, group_size=32, hidden_size=64, inner_hidden_size=128)
    quantized_folder(folder / "one group", 4, group_size=32)
    quantized_folder(folder / "table", 8, embedding_bits=8)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each of the two processes saw."""
    folder = tmp_path_factory.mktemp("models")
    _make_folders(folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    changes = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "CHATGLM_KERNEL": "reference",
        "CHATGLM_CACHE": str(folder / "cache"),
    }
    children = [
        forking.Popen(
            [sys.executable, "-m", "tests.loading.sharing", str(folder)],
            cwd=ROOT,
            env=os.environ | changes | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for rank in range(2)
    ]
    try:
        printed = [child.communicate(timeout=250)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait(30)
    assert [child.returncode for child in children] == [0, 0], printed
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_logits_are_those_of_one_process(seen: Seen, case: str) -> None:
    for process in seen:
        assert process["cases"][case]["forward"] < BOUND
        assert process["cases"][case]["steps"] < BOUND
        for answers in (process["cases"][case]["chat"], process["cases"][case]["seeded"]):
            assert len(set(answers)) == 1


def test_rounding_of_16_bits(seen: Seen) -> None:
    assert 0 < seen[0]["cases"]["bf16"]["steps"] < 0.02


@pytest.mark.parametrize("case", CASES)
def test_processes_agree(seen: Seen, case: str) -> None:
    """Bit for bit, so that they sample the same tokens; without a seed too."""
    first, second = (process["cases"][case] for process in seen)
    for what in ("bits", "chat", "seeded", "unseeded"):
        assert first[what] == second[what]


@pytest.mark.parametrize("case", CASES)
def test_each_has_half_of_every_matrix(seen: Seen, case: str) -> None:
    for process in seen:
        shapes = process["cases"][case]["shapes"]
        matrices = [name for name in shapes if name.endswith(".weight") and "norm" not in name and "prefix" not in name]
        assert any("dense_h_to_4h" in name for name in matrices)
        for name in matrices:
            (rows, columns), whole = shapes[name]
            assert 2 * rows * columns == whole[0] * whole[1], name


def test_the_library_splits_by_the_same_plan(seen: Seen) -> None:
    for process in seen:
        for result in process["library"].values():
            assert result["forward"] < BOUND
            assert result["made"][0] == result["made"][1]
            for layer in SPLIT_LAYERS:
                assert any(name.endswith(f".{layer}.weight") for name in result["split"])


def test_only_the_first_speaks(seen: Seen) -> None:
    for what in ("said", "example"):
        assert seen[0][what]
        assert not seen[1][what]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("heads", "its 1 attention heads do not divide by 2. Start one of 1."),
        ("vocabulary", f"its {ODD_VOCABULARY} rows of the vocabulary do not divide by 2"),
        ("groups", "whole groups of 32"),
        ("num_gpus", "tensor_parallel and num_gpus exclude each other"),
        ("lora_checkpoint", "tensor_parallel and lora_checkpoint exclude each other"),
        ("mmap", "tensor_parallel and mmap exclude each other"),
        ("save", "only a part of the model"),
        ("quantize", "only a part of the model"),
        ("library, heads", "its 1 attention heads do not divide by 2"),
        ("library, int8", "transformers cannot shard packed weights"),
        ("library, prefix", "transformers cannot shard a P-Tuning prefix"),
    ],
)
def test_what_is_refused(seen: Seen, what: str, words: str) -> None:
    for process in seen:
        assert words in process["refusals"][what]


def test_possible_numbers_are_named() -> None:
    family = family_of({"model_type": "chatglm"})
    config = family.config({"num_layers": 1})
    spec = family.spec(config)
    for number in (1, 2, 4, 8, 16, 32):
        check_ranks(spec, config, number)
    with pytest.raises(InvalidRequestError, match=r"32 attention heads do not divide by 3.* 1, 2, 4, 8, 16, 32\."):
        check_ranks(spec, config, 3)


def test_a_process_that_was_started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InvalidRequestError, match="torchrun --nproc_per_node"):
        load("demo", device="cpu", tensor_parallel=True)


def test_a_device_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="cannot be sharded over processes on mps"):
        load("demo", device="mps", tensor_parallel=True)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_shards_make_up_the_whole(num_ranks: int) -> None:
    whole = torch.arange(32).view(8, 4)
    for kind, join in (("rows", torch.cat), ("columns", lambda parts: torch.cat(parts, dim=1)), ("first", sum)):
        shards = [Shard(kind, rank, num_ranks, (shard_range(8, rank, num_ranks),)) for rank in range(num_ranks)]
        taken = [
            shard.of_rows(torch.cat([whole[rows.start : rows.stop] for rows in shard.row_ranges(8)]))
            for shard in shards
        ]
        assert [tuple(one.shape) for one in taken] == [shard.shape((8, 4)) for shard in shards]
        assert torch.equal(join(taken), whole)


def test_rows_of_interleaved_and_of_concatenated_segments() -> None:
    """A rank has whole heads: one range of rows, or one of each segment."""
    interleaved = LinearSpec("qkv", 8, (("query", 8), ("key", 8), ("value", 8)), num_groups=4)
    assert shard_rows(interleaved, 1, 2) == [range(12, 24)]
    grouped = LinearSpec("qkv", 8, (("query", 8), ("key", 4), ("value", 4)))
    assert shard_rows(grouped, 1, 2) == [range(4, 8), range(10, 12), range(14, 16)]
    shard = Shard("rows", 1, 2, tuple(shard_rows(grouped, 1, 2)))
    assert shard.shape((16, 8)) == (8, 8)


def test_key_and_value_heads_limit_the_number_of_ranks() -> None:
    family = family_of({"model_type": "chatglm"})
    config = family.config({"num_layers": 1})
    spec = replace(family.spec(config), num_kv_heads=2)
    check_ranks(spec, config, 2)
    with pytest.raises(InvalidRequestError, match=r"2 key and value heads do not divide by 4.* 1, 2\."):
        check_ranks(spec, config, 4)
