"""Layers over several GPUs: shares, errors, and runs on pretended devices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.errors import DeviceError, InvalidRequestError, OutOfMemoryError
from chatglm.generation.config import GenerationConfig
from chatglm.loading import load, placement
from chatglm.loading.placement import apply_placement, part_of, part_sizes, place, plan_placement
from chatglm.messages import to_messages
from chatglm.nn.kv_cache import KVCache
from chatglm.pipeline import load_pipeline
from tests.folders import make_folder
from tests.pretended_gpus import Pretended, empty
from tests.pretended_gpus import pretending as pretending  # a fixture
from utils import auto_configure_device_map, load_model_on_gpus

SPEC = empty(1).spec
REST = {"transformer.word_embeddings", "transformer.final_layernorm", "lm_head"}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.lists(st.integers(1, 9), min_size=1, max_size=16))
def test_laws_of_place(layers: list[int], shares: list[int]) -> None:
    """Everything has a place, layers stay in order, no device exceeds its share by more than a layer."""
    sizes = {"transformer.word_embeddings": 30, **{f"transformer.layers.{n}": size for n, size in enumerate(layers)}}
    device_map = place(sizes, shares, SPEC)
    assert device_map.keys() == sizes.keys()
    numbers = [device_map[f"transformer.layers.{n}"] for n in range(len(layers))]
    assert numbers == sorted(numbers)
    assert set(numbers) <= set(range(len(shares)))
    total = sum(sizes.values())
    for number, share in enumerate(shares):
        used = sum(size for part, size in sizes.items() if device_map[part] == number)
        assert used <= max(total * share / sum(shares), 30 if number == 0 else 0) + max(layers)


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 7, 8, 13, 16])
def test_every_gpu_is_used_evenly(num_gpus: int) -> None:
    """The first, which holds embedding, norm and head, may have no layers; the others differ by one at most."""
    device_map = auto_configure_device_map(num_gpus)
    assert device_map.keys() == REST | {f"transformer.layers.{number}" for number in range(28)}
    assert all(device_map[part] == 0 for part in REST)
    counts = Counter(number for part, number in device_map.items() if part not in REST)
    others = [counts[number] for number in range(1, num_gpus)]
    assert sum(counts.values()) == 28
    assert not others or max(others) - min(others) <= 1
    assert all(others)
    assert counts[0] <= min(others, default=28)


def test_uneven_cards_get_uneven_shares() -> None:
    counts = Counter(place(part_sizes(empty(30), torch.float16), [1.0, 3.0], SPEC).values())
    assert counts[1] > 2 * counts[0]


def test_two_gpus_share_the_layers_of_chatglm_6b() -> None:
    """The tied embedding, as large as 2.7 layers, counts once."""
    device_map = auto_configure_device_map(2)
    assert Counter(number for part, number in device_map.items() if part not in REST) == {0: 13, 1: 15}


def test_a_tied_embedding_counts_once_and_a_prefix_has_a_place() -> None:
    network = empty(pre_seq_len=4)
    sizes = part_sizes(network, torch.float16)
    assert "transformer.prefix_encoder" in sizes
    assert sizes["lm_head"] == 0
    network.config.tie_word_embeddings = False
    assert part_sizes(network, torch.float16)["lm_head"] == network.lm_head.weight.numel() * 2


def test_names_of_another_family_have_their_places() -> None:
    """Layers deeper in the tree, a head among the layers' siblings, and a module of which the spec knows nothing."""
    spec = replace(
        SPEC, layers="model.encoder.blocks", embedding="model.tokens", final_norm="model.encoder.norm", head="model.out"
    )
    names = ["model.tokens.weight", "model.encoder.norm.weight", "model.out.weight", "model.rotary.inv_freq"]
    names += [f"model.encoder.blocks.{number}.mlp.up.weight" for number in (10, 9, 1, 0)]
    parts = [part_of(name, spec) for name in names]
    assert parts[:4] == ["model.tokens", "model.encoder.norm", "model.out", "model.rotary"]
    device_map = place(dict.fromkeys(parts, 1), [1.0, 1.0], spec)
    assert [device_map[part] for part in parts] == [0, 0, 0, 0, 1, 1, 1, 1]
    device_map = place({part: 1 + 9 * (part in parts[4:]) for part in parts}, [1.0, 1.0], spec)
    assert [device_map[part] for part in parts[4:]] == [1, 1, 0, 0]


@pytest.fixture
def many_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """A machine that seems to have eight; the free bytes of each may be changed."""
    free = dict.fromkeys(range(8), 10**9)
    monkeypatch.setattr(placement, "choose_device", lambda name: torch.device(name))
    monkeypatch.setattr(placement, "available_memory", lambda device: free[device.index])
    return free


def test_what_does_not_fit_is_refused_with_numbers(many_gpus: dict[int, int]) -> None:
    many_gpus.update({1: 1000})
    network = empty()
    even = dict.fromkeys(part_sizes(network, torch.float16), 1)
    with pytest.raises(OutOfMemoryError, match="cuda:1 would have to hold"):
        plan_placement(network, torch.float16, 2, even)
    assert 1 not in plan_placement(network, torch.float16, 2, None).device_map.values()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lm_head": None}, "leaves out lm_head"),
        ({"transformer.layers.99": 0}, r"names transformer\.layers\.99"),
        ({"lm_head": "cpu"}, "number of a GPU"),
        ({"lm_head": -1}, "number of a GPU"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(change: dict[str, Any], reason: str, many_gpus: dict[int, int]) -> None:
    network = empty()
    device_map = {**dict.fromkeys(part_sizes(network, torch.float16), 0), **change}
    with pytest.raises(InvalidRequestError, match=reason):
        plan_placement(network, torch.float16, 1, {part: n for part, n in device_map.items() if n is not None})


@pytest.mark.parametrize("num_gpus", [0, -1, 1.5, True, "2"])
def test_a_number_that_is_none(num_gpus: Any) -> None:
    for function in (auto_configure_device_map, lambda number: load_model_on_gpus("demo", number)):
        with pytest.raises(InvalidRequestError, match="num_gpus"):
            function(num_gpus)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_without_gpus_there_is_a_sentence() -> None:
    for num_gpus in (1, 2):
        with pytest.raises(DeviceError, match="no usable CUDA device"):
            load_model_on_gpus("demo", num_gpus)


@pytest.mark.parametrize("quantize", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (None, 8))])
def test_placed_answers_as_unplaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: int | None) -> None:
    """All devices are the CPU here: every weight goes through its place, every layer through its hooks."""
    make_folder(tmp_path, num_layers=5)
    for module in (placement, load.__globals__):
        patch = monkeypatch.setitem if isinstance(module, dict) else monkeypatch.setattr
        patch(module, "choose_device", lambda name: torch.device("cpu"))
    placed = load_model_on_gpus(tmp_path, 3, dtype="fp32", quantize=quantize)
    with load_pipeline(tmp_path, device="cpu", dtype="fp32", quantize=quantize) as pipe:
        assert len({hook for layer in placed.transformer.layers if (hook := getattr(layer, "_hf_hook", None))}) == 5
        for seed in range(3):
            expected = pipe.chat("hello", seed=seed, max_length=40)
            assert placed.chat(pipe.tokenizer, "hello", [], seed=seed, max_length=40) == expected
        prompt = pipe.family.encode_chat(pipe.tokenizer, to_messages("hello", []), 40)
        engine = Engine(BatchDecoder(placed), pipe.tokenizer)
        config = GenerationConfig(temperature=0, max_length=40)
        handles = [engine.submit(prompt.input_ids, config) for _ in range(3)]
        expected, _ = pipe.chat("hello", temperature=0, max_length=40)
        assert [handle.result(60).text for handle in handles] == [expected] * 3
        engine.close()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")  # accelerate looks for ties
@pytest.mark.parametrize(
    ("num_gpus", "bits"),
    [
        *[(2, 0), (3, 4)],
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(1, 0), (4, 0), (8, 0), (8, 8), (2, 8), (8, 4), (1, 4)]
        ),
    ],
)
def test_no_tensor_meets_one_of_another_device(num_gpus: int, bits: int, pretending: None) -> None:
    """Logits come out on the first device, caches stay with their layers."""
    pretended = Pretended(num_gpus, bits)
    apply_placement(pretended.network, pretended.placement)
    cache = KVCache(pretended.network.config.num_layers)
    assert pretended.run(cache).device == pretended.devices[0]
    for number in range(pretended.network.config.num_layers):
        keys, values = cache.layer(number)
        assert keys.device == values.device == pretended.placement.device_of(f"transformer.layers.{number}.x")


def test_pretended_devices_would_show_it(pretending: None) -> None:
    """Without the hooks, that is."""
    pretended = Pretended(2, 0)
    with pytest.raises(RuntimeError, match="device"):
        pretended.run(KVCache(pretended.network.config.num_layers))
