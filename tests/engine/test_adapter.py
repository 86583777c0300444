"""A request without what was trained is answered as by the network that has none of it, beside others that have it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.generation.config import GenerationConfig
from chatglm.nn.lora import merged_state, updates_for
from chatglm.pipeline import load_pipeline
from tests.engine.rounding import skip_without_even_bfloat16
from tests.engine.test_exactness import PREFIXES, IdTokenizer, network
from tests.folders import make_folder
from tests.lora import LAYERS, attach_lora, random_update, write_update
from tests.serving.servers import serving

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=12)
LORA = ("main", "one_row", "bf16", "int8", "int4", "demo", PREFIXES[0])


def without_prefix(model: Any) -> Any:
    """The same weights in a network that never had one."""
    other = copy.deepcopy(model)
    other.transformer.prefix_encoder = None
    other.config.pre_seq_len = None
    return other


def prompts(model: Any) -> list[list[int]]:
    """With and without the beginning of an answer behind `<sop>`."""
    config = model.config
    return [
        [9, 10, config.gmask_token_id, config.bos_token_id],
        [11, config.gmask_token_id, config.bos_token_id, 12, 13],
    ]


def texts(model: Any, asked: list[tuple[list[int], bool]]) -> list[str]:
    engine = Engine(BatchDecoder(model), IdTokenizer())
    handles = [engine.submit(ids, GREEDY, uses_adapter=uses_adapter) for ids, uses_adapter in asked]
    answers = [handle.result().text for handle in handles]
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    engine.close()
    return answers


@pytest.mark.parametrize("name", PREFIXES)
def test_with_and_without_in_one_batch(name: str) -> None:
    model = copy.deepcopy(network(name))
    with torch.no_grad():
        for parameter in model.transformer.prefix_encoder.parameters():
            parameter *= 5  # so that it tells in every answer
    plain = without_prefix(model)
    own = prompts(model)
    expected_with = [texts(model, [(ids, True)])[0] for ids in own]
    expected_without = [texts(plain, [(ids, True)])[0] for ids in own]
    assert set(expected_with).isdisjoint(expected_without)
    mixed = texts(model, [(own[0], True), (own[0], False), (own[1], False), (own[1], True)])
    assert mixed == [expected_with[0], expected_without[0], expected_without[1], expected_with[1]]


def with_update(name: str, names: Sequence[str] = LAYERS) -> tuple[Any, Any]:
    """A network with an update of these layers that tells in every answer, and without."""
    if "bf16" in name:
        skip_without_even_bfloat16()
    plain = without_prefix(network(name)) if name in PREFIXES else network(name)
    tuned = copy.deepcopy(network(name))
    return attach_lora(tuned, random_update(tuned, 0.05, names)), plain


@pytest.mark.parametrize("name", LORA)
def test_an_update_for_some_of_a_batch(name: str) -> None:
    """Token for token, in prompts of one call and of their own, and in steps together; a prefix goes with it."""
    tuned, plain = with_update(name)
    own = prompts(tuned)
    expected_with = [texts(tuned, [(ids, True)])[0] for ids in own]
    expected_without = [texts(plain, [(ids, True)])[0] for ids in own]
    assert set(expected_with).isdisjoint(expected_without)
    assert [texts(tuned, [(ids, False)])[0] for ids in own] == expected_without
    mixed = texts(tuned, [(own[0], True), (own[0], False), (own[1], False), (own[1], True)])
    assert mixed == [expected_with[0], expected_without[0], expected_without[1], expected_with[1]]
    if name not in ("int8", "int4", "bf16"):  # a bfloat16 weight with the update in it is rounded again
        whole = copy.deepcopy(network(name))
        whole.load_state_dict(merged_state(tuned))
        assert [texts(whole, [(ids, True)])[0] for ids in own] == expected_with


@pytest.mark.parametrize("name", ["main", "bf16", "int8", "int4"])
@torch.inference_mode()
def test_scores_without_are_those_of_the_base_to_the_bit(name: str) -> None:
    """Where the same products run: alone, and beside others."""
    tuned, plain = with_update(name, [*LAYERS, "lm_head"])
    own = prompts(tuned)
    for ids in own:
        assert torch.equal(scores(tuned, [ids], [False]), scores(plain, [ids], [True]))
    off, expected = scores(tuned, own, [False, False]), scores(plain, own, [True, True])
    on = scores(tuned, own, [True, True])
    assert torch.equal(off, expected)
    # What others in a batch compute with does not matter, only that they are there.
    assert torch.equal(scores(tuned, own, [True, False]), torch.stack([on[:, 0], expected[:, 1]], 1))
    assert torch.equal(scores(tuned, own, [False, True]), torch.stack([expected[:, 0], on[:, 1]], 1))
    assert not torch.isclose(on, expected).all(-1).any()


def scores(model: Any, own: Sequence[list[int]], uses: Sequence[bool]) -> Tensor:
    """Scores of three steps [3, B, V] of these prompts together."""
    ids = [torch.tensor([prompt]) for prompt in own]
    decoder = BatchDecoder(model)
    layouts = [decoder.prompt_layout(prompt) for prompt in ids]
    caches = [decoder.new_cache(32, uses_adapter=flag) for flag in uses]
    decoder.fill_caches(ids, layouts, caches)
    last = [torch.cat([prompt[:, -1:] for prompt in ids]), *(torch.full((len(own), 1), n) for n in (20, 21))]
    return torch.stack([decoder.decode(step, layouts, caches) for step in last])


@torch.inference_mode()
def test_a_call_of_the_network_asks_its_cache() -> None:
    tuned, plain = with_update("main")
    ids = torch.tensor([prompts(tuned)[0]])
    expected, usual = plain(ids).logits, tuned(ids).logits
    assert torch.equal(
        tuned(ids, past_key_values=BatchDecoder(tuned).new_cache(9, uses_adapter=False)).logits, expected
    )
    with updates_for(False):
        assert torch.equal(tuned(ids, past_key_values=BatchDecoder(tuned).new_cache(9)).logits, expected)
    assert not torch.allclose(usual, expected, atol=1e-3)


def test_every_interface_can_leave_a_prefix_out(tmp_path: Path) -> None:
    folder, prefix = tmp_path / "model", tmp_path / "prefix"
    folder.mkdir()
    prefix.mkdir()
    make_folder(folder, max_sequence_length=128)
    with load_pipeline(folder, dtype="fp32") as plain:
        config = plain.model.config
        width = 2 * config.num_layers * config.hidden_size
        values = 30 * torch.randn(4, width, generator=torch.Generator().manual_seed(0))
        save_file({"transformer.prefix_encoder.embedding.weight": values}, prefix / "model.safetensors")
    check_interfaces(folder, {"ptuning_checkpoint": prefix})


def test_every_interface_can_leave_a_lora_update_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make_folder(folder, max_sequence_length=128)
    with load_pipeline(folder, dtype="fp32") as plain:
        update = write_update(tmp_path / "update", random_update(plain.model, 0.5))
    check_interfaces(folder, {"lora_checkpoint": update})


def check_interfaces(folder: Path, trained: dict[str, Path]) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8}
    with load_pipeline(folder, dtype="fp32") as plain:
        expected, _ = plain.chat("hello", **options)
    with load_pipeline(folder, dtype="fp32", **trained) as tuned, serving(tuned) as server:
        usual, _ = tuned.chat("hello", **options)
        assert usual != expected
        assert tuned.chat("hello", adapter=False, **options)[0] == expected
        stream = server.post("/stream", json={"prompt": "hello", "adapter": False, **options}).text
        assert f'"response":"{expected}"' in stream
        body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
        wanted = ((False, expected), (True, usual), (None, usual), (False, expected))

        def ask(adapter: bool | None) -> str:
            made = server.post("/v1/chat/completions", json={**body, "adapter": adapter}).json()
            return str(made["choices"][0]["message"]["content"])

        with ThreadPoolExecutor(len(wanted)) as pool:  # so that they share steps
            assert list(pool.map(ask, [adapter for adapter, _ in wanted])) == [answer for _, answer in wanted]
