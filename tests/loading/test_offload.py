"""Models under --max-memory: the same numbers as without it, inference only, and an end."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from chatglm import kernels
from chatglm.errors import ChatGLMError, DamagedFileError, InvalidRequestError
from chatglm.loading import LoadedModel, load
from chatglm.loading.memory_plan import RESERVED_BYTES
from chatglm.pipeline import Pipeline, load_pipeline
from tests import forking
from tests.folders import make_folder, random_tensors, tiny_config, write_config, write_weights
from tests.loading.folders import logits, quantized_folder

SIZES = {"num_layers": 7, "hidden_size": 64, "inner_hidden_size": 256}
ROOM = 900_000  # for a few of the 7 layers as float32
PACKED_ROOM = {4: 215_000, 8: 260_000}  # the same for packed layers and a table as float32 or int8
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    make_folder(folder, "safetensors_shards", max_sequence_length=256, **SIZES)
    return folder


@pytest.fixture
def limited(folder: Path) -> Iterator[LoadedModel]:
    loaded = load_limited(folder)
    yield loaded
    loaded.close()


def load_limited(folder: Path, room: int = ROOM, **options: Any) -> LoadedModel:
    loaded = load(folder, device="cpu", **{"dtype": "fp32", **options}, max_memory=RESERVED_BYTES + room)
    assert any(parameter.is_meta for parameter in loaded.model.parameters()), "nothing is streamed"
    return loaded


def replies(loaded: LoadedModel) -> list[str]:
    """Greedy and seeded answers of a pipeline."""
    with Pipeline(loaded) as pipe:
        greedy = pipe.chat("hello", max_new_tokens=12, min_new_tokens=12, temperature=0)
        seeded = pipe.chat("hello", max_new_tokens=12, min_new_tokens=12, temperature=1.5, top_k=0, seed=3)
    return [greedy[0], seeded[0]]


# --- the same numbers ---


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", ["safetensors", "safetensors_shards", "bin", "bin_shards"])
def test_logits_are_those_without_a_limit(layout: str, dtype: str, tmp_path: Path) -> None:
    make_folder(tmp_path, layout, **SIZES)
    whole = load(tmp_path, device="cpu", dtype=dtype).model
    # 420 kB: one buffer where weights are float32, two otherwise.
    for room in (420_000, 560_000):
        loaded = load_limited(tmp_path, room, dtype=dtype)
        for _ in range(2):
            assert torch.equal(logits(loaded.model), logits(whole))
        loaded.close()


def test_answers_are_those_without_a_limit(folder: Path) -> None:
    assert replies(load_limited(folder)) == replies(load(folder, device="cpu", dtype="fp32"))


@pytest.mark.parametrize("kernel", ["reference", "torch", "native"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_folders(bits: int, kernel: str, tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, bits, max_sequence_length=256, **SIZES)
    with kernels.use(kernel):
        assert replies(load_limited(folder, PACKED_ROOM[bits])) == replies(load(folder, device="cpu", dtype="fp32"))


def test_groups_of_columns(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, 4, group_size=32, **SIZES)
    loaded = load_limited(folder, PACKED_ROOM[4])
    assert torch.equal(logits(loaded.model), logits(load(folder, device="cpu", dtype="fp32").model))
    loaded.close()


def test_a_prefix_on_a_limited_base(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(pre_seq_len=5, max_sequence_length=256, **SIZES)
    prefix = {name: t for name, t in random_tensors(config, torch.float32).items() if "prefix_encoder" in name}
    write_config(tmp_path, config)
    write_weights(tmp_path, prefix, "bin")
    loaded = load_limited(folder, ptuning_checkpoint=tmp_path)
    whole = load(folder, device="cpu", dtype="fp32", ptuning_checkpoint=tmp_path)
    assert torch.equal(logits(loaded.model), logits(whole.model))
    loaded.close()


def test_threads_take_turns(limited: LoadedModel, folder: Path) -> None:
    """Also without the engine of a pipeline around the model."""
    expected = logits(load(folder, device="cpu", dtype="fp32").model)
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: logits(limited.model), range(9)):
            assert torch.equal(result, expected)


def test_requests_at_the_same_time(folder: Path) -> None:
    requests = [{"query": f"hello {i}", "max_new_tokens": 8, "min_new_tokens": 8, "seed": i} for i in range(5)]
    with load_pipeline(folder, device="cpu", dtype="fp32", max_memory=RESERVED_BYTES + ROOM) as pipe:
        alone = [pipe.chat(**request) for request in requests]
        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(lambda request: pipe.chat(**request), requests)) == alone


def test_the_users_library_call(limited: LoadedModel, folder: Path) -> None:
    """transformers' generate, which looks at types and devices of parameters."""
    ids = torch.tensor([limited.tokenizer.encode("hello")])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 10**6}
    whole = load(folder, device="cpu", dtype="fp32").model
    assert torch.equal(limited.model.generate(ids, **options), whole.generate(ids, **options))


def test_the_message(folder: Path) -> None:
    said: list[str] = []
    load(folder, device="cpu", dtype="fp32", max_memory=RESERVED_BYTES + ROOM, report=said.append).close()
    sentence = next(sentence for sentence in said if "layers stay in memory" in sentence)
    kept, total, streamed = map(int, re.findall(r"\d+", sentence)[:3])
    assert 0 < kept < total == 7
    assert kept + streamed == 7
    assert "fp32 on cpu: needs" in said[0]


# --- inference only ---


@pytest.mark.parametrize(
    "action",
    [
        lambda model, folder: model.state_dict(),
        lambda model, folder: model.transformer.state_dict(),
        lambda model, folder: model.save_pretrained(folder / "saved"),
        lambda model, folder: model.half(),
        lambda model, folder: model.to(torch.bfloat16),
        lambda model, folder: model.transformer.float(),
        lambda model, folder: model.quantize(4),
    ],
)
def test_what_needs_all_weights_is_refused(
    action: Callable[[Any, Path], Any], limited: LoadedModel, tmp_path: Path
) -> None:
    before = logits(limited.model)
    with pytest.raises(InvalidRequestError, match="--max-memory holds only some of its weights"):
        action(limited.model, tmp_path)
    assert not any(tmp_path.iterdir())
    assert torch.equal(logits(limited.model), before)


def test_training_is_refused(limited: LoadedModel) -> None:
    embeddings = torch.randn(1, 3, 64, requires_grad=True)
    positions = torch.zeros(1, 2, 3, dtype=torch.long)
    with pytest.raises(InvalidRequestError, match="trained"):
        limited.model(inputs_embeds=embeddings, position_ids=positions, attention_mask=torch.zeros(1, 1, 3, 3).bool())
    assert not any(parameter.requires_grad for parameter in limited.model.parameters())


def test_between_calls_parameters_are_empty(limited: LoadedModel) -> None:
    """Buffers hold another layer's numbers by then."""
    empty = [name for name, parameter in limited.model.named_parameters() if parameter.is_meta]
    logits(limited.model)
    assert [name for name, parameter in limited.model.named_parameters() if parameter.is_meta] == empty


def test_an_error_inside_a_layer_leaves_a_working_model(limited: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logits(limited.model)
    layer = next(layer for layer in limited.model.transformer.layers if next(layer.parameters()).is_meta)
    for error in (RuntimeError("broken"), KeyboardInterrupt()):

        def fail(*args: Any, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(layer.mlp, "forward", fail)
            with pytest.raises(type(error)):
                logits(limited.model)
        assert torch.equal(logits(limited.model), before)


def test_a_file_that_changes_while_it_is_in_use(tmp_path: Path) -> None:
    make_folder(tmp_path, "safetensors", **SIZES)
    loaded = load_limited(tmp_path)
    logits(loaded.model)
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(DamagedFileError, match=r"model\.safetensors was changed while it was in use"):
            [logits(loaded.model) for _ in range(3)]  # the first passes use what was read before
    loaded.close()


# --- the end ---


def reading_threads() -> int:
    return sum(thread.name == "chatglm-read-ahead" for thread in threading.enumerate())


def test_closing_a_pipeline_ends_the_thread(folder: Path) -> None:
    before = reading_threads()
    pipe = load_pipeline(folder, device="cpu", dtype="fp32", max_memory=RESERVED_BYTES + ROOM)
    model = pipe.model
    assert reading_threads() == before + 1
    pipe.close()
    pipe.close()
    assert reading_threads() == before
    with pytest.raises(ChatGLMError, match="closed"):
        logits(model)


def test_letting_go_of_the_model_ends_the_thread(folder: Path) -> None:
    before = reading_threads()
    loaded = load_limited(folder)
    reference = weakref.ref(loaded.model)
    logits(loaded.model)
    del loaded
    gc.collect()
    assert reference() is None
    assert reading_threads() == before


@pytest.mark.slow
def test_a_program_ends_with_a_model_still_open(folder: Path) -> None:
    code = (
        "from chatglm.pipeline import load_pipeline\n"
        f"pipe = load_pipeline({str(folder)!r}, device='cpu', dtype='fp32', max_memory={RESERVED_BYTES + ROOM})\n"
        "print(len(pipe.chat('hello', max_new_tokens=3, min_new_tokens=3)[1]))"
    )
    result = forking.run([sys.executable, "-c", code], preload=forking.TORCH, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout.strip()) == (0, "1"), result.stderr


# --- memory, measured ---


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("width", "limit"), [(512, "60M"), (1024, "200M")])
def test_a_model_of_three_times_the_limit(width: int, limit: str) -> None:
    """The process stays near the limit, and logits and tokens are the same; each run in a fresh process."""
    size = ["--hidden-size", str(width), "--limit", limit, "--tokens", "2"]
    command = [sys.executable, "-m", "benchmarks.max_memory", *size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # quick where others use the cores too
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    summary = json.loads(output.splitlines()[-1])
    whole, limited = summary["runs"]
    assert summary["file_bytes"] > 2.5 * summary["limit_bytes"]
    assert summary["is_same"]
    assert limited["peak_bytes"] <= 1.15 * summary["limit_bytes"] < whole["peak_bytes"]
