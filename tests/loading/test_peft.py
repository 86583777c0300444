"""Adapters as peft writes them: loaded here they give peft's own logits of that folder, or the setting is named."""

from __future__ import annotations

import copy
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import ChatGLMError, UnsupportedModelError
from chatglm.loading import load, lora_config
from tests.folders import make_folder
from tests.loading.folders import logits

peft: Any = pytest.importorskip("peft")
ALL = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_folder(folder, "safetensors", dtype=torch.float32)
    return folder


@cache
def network_of(base: Path) -> Any:
    return load(base, device="cpu", dtype="fp32").model


def save(base: Path, folder: Path, **config: Any) -> Path:
    """An adapter of random values, as peft saves it."""
    generator = torch.Generator().manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(
            **{"r": 4, "lora_alpha": 6, "target_modules": ALL, "task_type": "CAUSAL_LM", **config}
        )
        model = peft.get_peft_model(copy.deepcopy(network_of(base)), settings)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def logits_by_peft(base: Path, folder: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(network_of(base)), str(folder))
    return logits(model.get_base_model().eval())


def logits_by_us(base: Path, folder: Path) -> torch.Tensor:
    return logits(load(base, device="cpu", dtype="fp32", lora_checkpoint=folder).model)


def assert_equal(base: Path, folder: Path) -> None:
    try:
        expected = logits_by_peft(base, folder)
    except RuntimeError:  # it writes the patterns in another order than it was given, and then reads another rank
        with pytest.raises(ChatGLMError, match="says rank"):
            logits_by_us(base, folder)
        return
    torch.testing.assert_close(logits_by_us(base, folder), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(network_of(base)), atol=1e-3)


# Regular expressions as well as names; some fit several layers, and the first that fits counts.
PATTERNS = [
    r"dense",
    r"query_key_value",
    r"attention.dense",
    r"layers.1.attention.query_key_value",
    r"x",
    r".*h_to_4h",
    r"layers\.0\..*",
    r"transformer\.layers\.1\.mlp.dense_\w+",
    r"(?:attention|mlp)\.\w*e",
    r"dense_4h_to_h|query.*",
    r"[0-9].mlp.dense.*",
]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    ranks=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 9), max_size=3),
    alphas=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 30), max_size=3),
    config=st.fixed_dictionaries(
        {
            "target_modules": st.sampled_from(
                [ALL, ["query_key_value"], "all-linear", r".*\.(dense|query_key_value)", ["layers.1.mlp.dense_h_to_4h"]]
            ),
            "init_lora_weights": st.sampled_from([True, False, "gaussian"]),
            "use_rslora": st.booleans(),
            "fan_in_fan_out": st.booleans(),
        },
        optional={
            "exclude_modules": st.sampled_from([["layers.0.mlp.dense_h_to_4h"], r".*\.1\.attention\.dense"]),
            "lora_dropout": st.just(0.5),
        },
    ),
)
def test_plain_adapters(
    base: Path,
    ranks: dict[str, int],
    alphas: dict[str, int],
    config: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = save(base, tmp_path_factory.mktemp("lora"), rank_pattern=ranks, alpha_pattern=alphas, **config)
    assert_equal(base, folder)


@pytest.mark.parametrize(
    "config",
    [
        {"layers_to_transform": 1},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"layers_to_transform": [0], "layers_pattern": ["blocks", "layers"], "rank_pattern": {"dense": 2}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"target_modules": ["lm_head"]},
        {"target_modules": None, "alpha_pattern": {"query_key_value{1,2}": 5}},
    ],
    ids=str,
)
def test_settings_that_few_give(base: Path, config: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(base, save(base, tmp_path, **config))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_changed_base_is_refused_and_what_was_converted_is_not(base: Path, start: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL, init_lora_weights=start)
        model = peft.get_peft_model(copy.deepcopy(network_of(base)), settings)
        model.peft_config["default"].init_lora_weights = True  # the start, to be converted against
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = start
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1
        expected = logits(copy.deepcopy(model).merge_and_unload())
        model.save_pretrained(tmp_path / "plain")
        model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with pytest.raises(UnsupportedModelError, match=f"init_lora_weights '{start}'.*path_initial_model"):
        logits_by_us(base, tmp_path / "plain")
    torch.testing.assert_close(logits_by_us(base, tmp_path / "converted"), expected, rtol=1e-3, atol=1e-3)


MORE_THAN_PLAIN = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "target_parameters": {"target_modules": [], "target_parameters": ["attention.dense.weight"]},
    "lora_embedding": {"target_modules": ["word_embeddings"]},
}


@pytest.mark.parametrize("name", MORE_THAN_PLAIN)
def test_what_is_more_than_plain_lora_is_refused_by_name(base: Path, name: str, tmp_path: Path) -> None:
    folder = save(base, tmp_path, **MORE_THAN_PLAIN[name])
    with pytest.raises(UnsupportedModelError, match=rf"{name}.*merge_and_unload"):
        logits_by_us(base, folder)


def edit(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"r": 8}, "says rank 8 for transformer.*holds rank 4"),
        ({"rank_pattern": {".*dense": 5}}, r"says rank 5 for .*attention\.dense, but"),
        ({"r": True}, "r is a whole number from 1 to 65,536, not True"),
        ({"lora_alpha": "16"}, "lora_alpha is a number .*, not '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is a number .*, not nan"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is an object .*, not \[1\]"),
        ({"alpha_pattern": {"(": 1}}, "pattern .* cannot be read"),
        ({"alpha_pattern": {"(((a{1000}){1000}){1000})": 1}}, "pattern .* is too long"),
        *(
            ({"alpha_pattern": {pattern: 9}}, "pattern .* has braces or brackets")
            for pattern in ("dense{e}", "(?:dens){s<=1}e", "[[:alpha:]]*", "[x[:alpha:]]*", "dense{}", r"\{e\}")
        ),
        ({"target_modules": None}, "has an update for .*dense.*adapter_config.json has none"),
        ({"target_modules": ["query_key_value"]}, "has an update for .*dense.*adapter_config.json has none"),
        ({"exclude_modules": "(.*).dense"}, "has an update for .*dense.*adapter_config.json has none"),
        ({"target_modules": [*ALL, "lm_head"]}, "has an update for lm_head, but .*adapter_model.* has none"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"init_lora_weights": "of next year"}, "init_lora_weights 'of next year'"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "trained with layer_replication"),
        ({"a_method_of_next_year": {"x": 1}}, "trained with a_method_of_next_year"),
        ({"peft_type": "ADALORA"}, "describes 'ADALORA', not LORA"),
    ],
    ids=str,
)
def test_settings_that_contradict_the_tensors(base: Path, keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    edit(save(base, tmp_path), **keys)
    with pytest.raises(ChatGLMError, match=words):
        logits_by_us(base, tmp_path)


def test_a_pattern_that_takes_too_long(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_config, "PATTERN_SECONDS", 0.01)
    edit(save(base, tmp_path), alpha_pattern={r"(?:(?:.|..)+)+[^\w.]": 1})
    with pytest.raises(ChatGLMError, match=r"pattern .* takes too long"):
        logits_by_us(base, tmp_path)


def test_a_checkpoint_in_the_folder_is_named(base: Path, tmp_path: Path) -> None:
    save(base, tmp_path / "checkpoint-3")
    with pytest.raises(ChatGLMError, match=r"Did you mean .*checkpoint-3\?"):
        logits_by_us(base, tmp_path)
