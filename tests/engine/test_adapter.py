"""A request without the trained prefix is answered as by the network that has none, beside others that have it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from chatglm.engine import Engine
from chatglm.errors import InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.pipeline import load_pipeline
from tests.engine.test_exactness import PREFIXES, IdTokenizer, network
from tests.folders import make_folder
from tests.serving.servers import serving

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=12)


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
    engine = Engine(model, IdTokenizer())
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


def test_every_door_can_leave_it_out(tmp_path: Path) -> None:
    folder, prefix = tmp_path / "model", tmp_path / "prefix"
    folder.mkdir()
    prefix.mkdir()
    make_folder(folder, max_sequence_length=128)
    with load_pipeline(folder, dtype="fp32") as plain:
        config = plain.model.config
        width = 2 * config.num_layers * config.hidden_size
        values = 30 * torch.randn(4, width, generator=torch.Generator().manual_seed(0))
        save_file({"transformer.prefix_encoder.embedding.weight": values}, prefix / "model.safetensors")
        options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8}
        expected, _ = plain.chat("hello", **options)
    with load_pipeline(folder, dtype="fp32", ptuning_checkpoint=prefix) as tuned, serving(tuned) as server:
        usual, _ = tuned.chat("hello", **options)
        assert usual != expected
        assert tuned.chat("hello", adapter=False, **options)[0] == expected
        stream = server.post("/stream", json={"prompt": "hello", "adapter": False, **options}).text
        assert f'"response":"{expected}"' in stream
        body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
        for adapter, answer in ((False, expected), (True, usual), (None, usual)):
            made = server.post("/v1/chat/completions", json={**body, "adapter": adapter}).json()
            assert made["choices"][0]["message"]["content"] == answer


def test_a_lora_update_cannot_be_left_out(tmp_path: Path) -> None:
    folder, update = tmp_path / "model", tmp_path / "update"
    folder.mkdir()
    update.mkdir()
    make_folder(folder)
    width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    layer = "base_model.model.transformer.layers.0.attention.dense"
    values = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(width, 1)}
    save_file(values, update / "adapter_model.safetensors")
    (update / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}', encoding="utf-8")
    with load_pipeline(folder, dtype="fp32", lora_checkpoint=update) as pipe:
        assert pipe.chat("hello", temperature=0, max_new_tokens=4)[0]
        with pytest.raises(InvalidRequestError, match="part of the weights"):
            pipe.chat("hello", adapter=False)
