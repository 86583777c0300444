"""LoRA: trained by peft, loaded without it, attached to weights of any kind or merged; and full fine-tuning."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatglm.errors import ChatGLMError, CheckpointError, InvalidRequestError, MismatchError, OutOfMemoryError
from chatglm.loading import load, placement
from chatglm.loading.lora_checkpoint import find_lora
from chatglm.loading.memory_plan import RESERVED_BYTES
from chatglm.models.chatglm.model import ChatGLMForConditionalGeneration
from chatglm.nn.lora import LowRankLinear
from chatglm.pipeline import Pipeline, load_pipeline
from chatglm.training.arguments import parse_arguments
from chatglm.training.merging import merge
from chatglm.training.run import run
from tests.folders import make_folder
from tests.loading.folders import quantized_folder
from tests.lora import random_update, write_update
from tests.training.data import ROWS, arguments

LEARNS = {"max_steps": 12, "per_device_train_batch_size": 12, "do_train": True}
ALL_LAYERS = "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"
IDS = [[20, 21, 22, 23]]


@pytest.fixture(scope="module")
def update(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An update of all layers, large enough to be seen."""
    output = tmp_path_factory.mktemp("lora")
    options = {"lora_rank": 2, "lora_target": ALL_LAYERS, "report_to": "none"}
    run(arguments(base, rows, output, **LEARNS, **options))
    return output


def _losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def _logits(network: Any) -> torch.Tensor:
    config = network.config
    ids = torch.tensor([[*IDS[0], config.gmask_token_id, config.bos_token_id, 30, 31]])
    with torch.no_grad():
        return network(input_ids=ids).logits


def test_only_the_update_is_trained_and_written(update: Path) -> None:
    tensors = load_file(update / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 4  # A and B of four layers in each of two blocks
    assert all(name.startswith("base_model.model.transformer.layers.") for name in tensors)
    assert not (update / "model.safetensors").exists()
    losses = _losses(update)
    assert losses[-1] < losses[0] - 0.05


def test_peft_itself_loads_what_was_written(base: Path, update: Path) -> None:
    import peft

    ours: Any = load(base, lora_checkpoint=update).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft uses names that transformers has replaced
        theirs: Any = peft.PeftModel.from_pretrained(load(base).model, str(update))
    plain: Any = load(base).model
    expected = _logits(theirs.get_base_model().eval())
    torch.testing.assert_close(_logits(ours), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(_logits(plain), expected, atol=1e-3)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_an_update_is_attached_to_weights(bits: int | None, base: Path, update: Path) -> None:
    tuned, plain = (
        load(base, quantize=bits, lora_checkpoint=update).model,
        load(base, quantize=bits).model,
    )
    layer: Any = tuned.transformer.layers[1].mlp.dense_h_to_4h
    assert isinstance(layer, LowRankLinear)
    x = torch.randn(3, 32)
    tensors = load_file(update / "adapter_model.safetensors")
    start = "base_model.model.transformer.layers.1.mlp.dense_h_to_4h.lora_"
    expected = 2.0 * x @ tensors[f"{start}A.weight"].T @ tensors[f"{start}B.weight"].T  # alpha / rank = 2
    with torch.no_grad():
        difference = layer(x) - plain.transformer.layers[1].mlp.dense_h_to_4h(x)
    torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-4)
    tensors = tuned.state_dict()
    layer_name = "transformer.layers.1.mlp.dense_h_to_4h"
    assert torch.equal(tensors[f"{layer_name}.base.weight"], plain.state_dict()[f"{layer_name}.weight"])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_updates_are_in_the_type_of_the_network(dtype: str, base: Path, update: Path) -> None:
    network: Any = load(base, dtype=dtype, lora_checkpoint=update).model
    assert {parameter.dtype for parameter in network.parameters()} == {network.dtype}
    again = _logits(network.float() if dtype == "bf16" else network.bfloat16())
    torch.testing.assert_close(again.float(), _logits(load(base, lora_checkpoint=update).model), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_after_loading_keeps_the_update_attached(bits: int, base: Path, update: Path) -> None:
    late = load(base, dtype="fp32", lora_checkpoint=update).model.quantize(bits)
    assert late.transformer.layers[0].attention.dense.base.weight.dtype == torch.int8
    early: Any = load(base, dtype="fp32", quantize=bits, lora_checkpoint=update).model
    late_state, early_state = late.state_dict(), early.state_dict()
    of_blocks = [name for name in early_state if ".layers." in name]  # the table is packed while it is read only
    assert of_blocks
    assert all(torch.equal(late_state[name], early_state[name]) for name in of_blocks)
    assert torch.equal(_logits(late).argmax(-1), _logits(early).argmax(-1))


def _copy_tokenizer(base: Path, folder: Path) -> None:
    for name in ("ice_text.model", "tokenizer_config.json"):
        shutil.copy(base / name, folder)


def test_saving_writes_a_model_like_any_other(base: Path, update: Path, tmp_path: Path) -> None:
    tuned: Any = load(base, lora_checkpoint=update).model
    before = _logits(tuned)
    tuned.save_pretrained(tmp_path / "whole")
    assert torch.equal(_logits(tuned), before)  # it is unchanged
    stored = load_file(tmp_path / "whole" / "model.safetensors")
    assert stored.keys() == load(base).model.state_dict().keys() - {"lm_head.weight"}
    _copy_tokenizer(base, tmp_path / "whole")
    torch.testing.assert_close(_logits(load(tmp_path / "whole").model), before, rtol=1e-5, atol=1e-5)
    packed: Any = load(base, quantize=8, lora_checkpoint=update).model
    with pytest.raises(InvalidRequestError, match="attached to packed weights"):
        packed.save_pretrained(tmp_path / "packed")


def test_an_output_head_of_its_own(base: Path, tmp_path: Path) -> None:
    """An update of the head leaves the embedding alone, though the two are one table in the base."""
    plain: Any = load(base, dtype="fp32").model
    folder = write_update(tmp_path / "update", random_update(plain, 0.5, ["lm_head"]))
    tuned: Any = load(base, dtype="fp32", lora_checkpoint=folder).model
    assert torch.equal(tuned.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    merge(base, folder, tmp_path / "merged")
    tuned.save_pretrained(tmp_path / "saved")
    _copy_tokenizer(base, tmp_path / "saved")
    for name in ("merged", "saved"):
        again: Any = load(tmp_path / name).model
        torch.testing.assert_close(_logits(again), _logits(tuned), rtol=1e-4, atol=1e-4)
        from_library = ChatGLMForConditionalGeneration.from_pretrained(tmp_path / name)
        torch.testing.assert_close(_logits(from_library), _logits(tuned), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(_logits(plain), _logits(tuned), atol=1e-2)


@pytest.mark.parametrize("bits", [0, 4])
def test_a_limit_on_memory(bits: int, tmp_path: Path) -> None:
    """Layers that come and go have their updates too; the update counts."""
    sizes = {"num_layers": 7, "hidden_size": 64, "inner_hidden_size": 256}
    if bits:
        quantized_folder(tmp_path / "base", bits, **sizes)
    else:
        make_folder(tmp_path / "base", "safetensors", **sizes)
    whole: Any = load(tmp_path / "base", dtype="fp32").model
    folder = write_update(tmp_path / "update", random_update(whole, 0.05))
    room = (215_000 if bits else 900_000) + find_lora(folder).size_bytes(torch.float32)
    options: dict[str, Any] = {"dtype": "fp32", "lora_checkpoint": folder}
    limited = load(tmp_path / "base", max_memory=RESERVED_BYTES + room, **options)
    assert any(parameter.is_meta for parameter in limited.model.parameters())
    assert torch.equal(_logits(limited.model), _logits(load(tmp_path / "base", **options).model))
    limited.close()
    large = write_update(tmp_path / "large", random_update(whole, 0.05, rank=600))
    with pytest.raises(OutOfMemoryError, match="Give --max-memory 34M"):  # 17M without it
        load(tmp_path / "base", dtype="fp32", max_memory="20M", lora_checkpoint=large)


@pytest.mark.parametrize("bits", [None, 4])
def test_layers_on_several_devices(bits: int | None, base: Path, update: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are the CPU here; the updates go through the hooks of their layers."""
    options: dict[str, Any] = {"dtype": "fp32", "quantize": bits, "lora_checkpoint": update}
    expected = load(base, device="cpu", **options)
    monkeypatch.setattr(placement, "choose_device", lambda name: torch.device("cpu"))
    placed = load(base, device="cpu", num_gpus=2, **options)
    assert hasattr(placed.model.transformer.layers[0].mlp.dense_h_to_4h.base, "_hf_hook")
    assert torch.equal(_logits(placed.model), _logits(expected.model))
    with Pipeline(placed) as there, Pipeline(expected) as here:
        for adapter in (True, False):
            words: dict[str, Any] = {"adapter": adapter, "temperature": 0, "max_new_tokens": 6}
            assert there.chat("hello", **words) == here.chat("hello", **words)


def test_mapped_weights_stay_mapped(base: Path, update: Path) -> None:
    mapped: Any = load(base, dtype="fp32", mmap=True, lora_checkpoint=update).model
    assert torch.equal(_logits(mapped), _logits(load(base, dtype="fp32", lora_checkpoint=update).model))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_bases_are_trained(bits: int, base: Path, rows: Path, tmp_path: Path) -> None:
    run(arguments(base, rows, tmp_path, lora_rank=2, lora_target=ALL_LAYERS, quantization_bit=bits, **LEARNS))
    losses = _losses(tmp_path)
    assert losses[-1] < losses[0] - 0.05
    load(base, lora_checkpoint=tmp_path)
    with load_pipeline(base, quantize=bits, lora_checkpoint=tmp_path) as pipe:
        assert pipe.chat("hello", temperature=0, max_new_tokens=4)


def test_a_merged_model_answers_as_the_update_does(base: Path, rows: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    options = {"lora_rank": 2, "lora_target": ALL_LAYERS, "merge_to": merged}
    run(arguments(base, rows, tmp_path / "out", **LEARNS, **options))
    merged_model, attached = (
        load(merged).model,
        load(base, lora_checkpoint=tmp_path / "out").model,
    )
    torch.testing.assert_close(_logits(merged_model), _logits(attached), rtol=1e-5, atol=1e-6)
    predicted = run(arguments(merged, rows, tmp_path / "a", do_predict=True))
    same = run(arguments(base, rows, tmp_path / "b", do_predict=True, lora_checkpoint=tmp_path / "out"))
    assert predicted == same
    with pytest.raises(ChatGLMError, match="exists already"):
        run(arguments(base, rows, tmp_path / "c", **LEARNS, **options))


def test_merging_alone(base: Path, update: Path, rows: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    make_folder(half, "bin_shards", dtype=torch.float16)
    words = ["--model_name_or_path", str(half), "--lora_checkpoint", str(update), "--output_dir", str(tmp_path / "x")]
    run(parse_arguments([*words, "--merge_to", str(tmp_path / "merged"), "--use_cpu"]))
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    expected = _logits(load(half, lora_checkpoint=update).model)
    torch.testing.assert_close(_logits(load(tmp_path / "merged").model), expected, rtol=1e-2, atol=1e-2)
    packed = quantized_folder(tmp_path / "packed", 8)
    with pytest.raises(InvalidRequestError, match="cannot be merged into packed weights"):
        merge(packed, update, tmp_path / "new")
    with pytest.raises(InvalidRequestError, match="--merge_to is for LoRA"):
        arguments(base, rows, tmp_path, do_train=True, pre_seq_len=3, merge_to="x")
    with pytest.raises(InvalidRequestError, match="needs --lora_checkpoint"):
        arguments(base, rows, tmp_path, do_predict=True, lora_rank=3, merge_to="x")


def test_resuming_and_continuing(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"lora_rank": 2, "do_train": True, "max_steps": 6, "save_steps": 3, "lora_dropout": 0.1}
    run(arguments(base, rows, tmp_path / "whole", **options))
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    run(arguments(base, rows, tmp_path / "cut", resume_from_checkpoint="true", **options))
    ends = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    again = options | {"lora_checkpoint": tmp_path / "whole", "learning_rate": 0.0}
    run(arguments(base, rows, tmp_path / "again", **again))
    kept = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(ends[0][name], kept[name]) for name in kept)
    other = shutil.copytree(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["transformer.final_layernorm.weight"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(MismatchError, match="was trained on another base model"):
        run(arguments(other, rows, tmp_path / "more", **again | {"max_steps": 1}))
    with pytest.raises(MismatchError, match="was trained on another base model"):
        load(other, lora_checkpoint=tmp_path / "whole")
    with pytest.raises(
        CheckpointError, match=r"attention.query_key_value has rank 2, scale 2 there, .* scale 8 in this"
    ):
        run(arguments(base, rows, tmp_path / "cut", resume_from_checkpoint="true", **options, lora_alpha=16))


def test_continuing_takes_the_settings_of_the_update(base: Path, rows: Path, tmp_path: Path) -> None:
    """Each layer has its rank and scale, and the folder written says so again."""
    network: Any = load(base).model
    update = random_update(network, 0.5)
    update = {name: pair for name, pair in update.items() if name != "transformer.layers.0.mlp.dense_h_to_4h"}
    update |= random_update(network, 0.5, ["dense_4h_to_h"], rank=3)
    folder = write_update(tmp_path / "start", update)
    settings = {"r": 2, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {".*4h_to_h": 3}}
    settings |= {"target_modules": r".*\.(dense\w*|query_key_value)", "alpha_pattern": {"layers.1.attention.dense": 5}}
    _changed(folder, **settings, exclude_modules=["layers.0.mlp.dense_h_to_4h"])
    options = {"lora_checkpoint": folder, "do_train": True, "max_steps": 1, "learning_rate": 0.0}
    run(arguments(base, rows, tmp_path / "more", **options))
    before, after = (load(base, lora_checkpoint=tmp_path / name).model for name in ("start", "more"))
    torch.testing.assert_close(_logits(after), _logits(before))
    assert not torch.allclose(_logits(before), _logits(network), atol=1e-2)
    for flags, words in (
        ({"lora_rank": 4}, "--lora_rank is 4, but .* has 2"),
        ({"lora_alpha": 4}, "--lora_alpha is 4.0, but .* has 3"),
        ({"lora_target": "query_key_value"}, "--lora_target is query_key_value, but .* has .*dense"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            run(arguments(base, rows, tmp_path / "x", **options, **flags))
    _changed(folder, init_lora_weights="pissa")
    with pytest.raises(CheckpointError, match="init_lora_weights 'pissa'"):
        run(arguments(base, rows, tmp_path / "x", **options))


MISTAKES = {
    "no folder": (lambda folder: folder / "absent", "There is no folder"),
    "nothing in it": (lambda folder: _changed(folder, drop="adapter_config.json"), "holds no LoRA update"),
    "another kind": (lambda folder: _changed(folder, peft_type="IA3"), "describes 'IA3', not LORA"),
    "dora": (lambda folder: _changed(folder, use_dora=True), "trained with use_dora"),
    "no rank": (lambda folder: _changed(folder, r=None), "does not say r and lora_alpha"),
    "half": (lambda folder: _changed(folder, tensors=lambda t: t.popitem()), "only half of the update"),
    "whole name": (lambda folder: _changed(folder, tensors=_rename), "peft itself would leave it out"),
    "other tensors": (lambda folder: _changed(folder, tensors=lambda t: t.update(x=t["first"])), "no part of a plain"),
    "other sizes": (lambda folder: _changed(folder, tensors=_widen), "does not fit this base model"),
    "flat": (lambda folder: _changed(folder, tensors=_flatten), "only parts of the update: 16 of 16 tensors"),
    "empty": (lambda folder: _changed(folder, tensors=_flatten_to_nothing), r"only parts of the update.*\[0\]"),
    "no tensors": (lambda folder: _changed(folder, tensors=dict.clear), "holds no tensors: the update was not saved"),
    "integers": (lambda folder: _changed(folder, tensors=_round), "no part of a plain LoRA update"),
}


def _widen(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        tensors[name] = torch.zeros(2, 48) if "lora_A" in name else torch.zeros(96, 2)


def _flatten(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        tensors[name] = tensors[name].flatten()


def _flatten_to_nothing(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        tensors[name] = torch.zeros(0)


def _round(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        tensors[name] = tensors[name].int()


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)


def _changed(folder: Path, drop: str = "", tensors: Any = None, **config: Any) -> Path:
    if drop:
        (folder / drop).unlink()
    else:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")
    if tensors is not None:
        stored = load_file(folder / "adapter_model.safetensors")
        first = next(iter(stored.values()))
        changed = _WithFirst(stored, first)
        tensors(changed)
        save_file({name: value.clone() for name, value in changed.items()}, folder / "adapter_model.safetensors")
    return folder


class _WithFirst(dict[str, torch.Tensor]):
    """A table of tensors that also answers to "first"."""

    def __init__(self, tensors: dict[str, torch.Tensor], first: torch.Tensor) -> None:
        super().__init__(tensors)
        self._first = first

    def __missing__(self, name: str) -> torch.Tensor:
        return self._first


@pytest.mark.parametrize("name", MISTAKES)
def test_folders_that_cannot_be_loaded(name: str, base: Path, update: Path, tmp_path: Path) -> None:
    make, words = MISTAKES[name]
    folder = shutil.copytree(update, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    with pytest.raises(CheckpointError, match=words):
        load(base, lora_checkpoint=make(folder))


def test_options_that_exclude_each_other(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be trained together"):
        arguments(base, rows, tmp_path, do_train=True, lora_rank=2, pre_seq_len=3)
    with pytest.raises(InvalidRequestError, match="--lora_target nothing"):
        run(arguments(base, rows, tmp_path, do_train=True, lora_rank=2, lora_target="nothing"))


def test_every_weight_is_trained(base: Path, rows: Path, tmp_path: Path) -> None:
    """The folder that full fine-tuning writes is a model folder, and so is each of its checkpoints."""
    options = LEARNS | {"learning_rate": 0.03, "max_steps": 50}
    run(arguments(base, rows, tmp_path / "full", **options))
    losses = _losses(tmp_path / "full")
    assert losses[-1] < losses[0] / 2
    figures = run(arguments(tmp_path / "full", rows, tmp_path / "predicted", do_predict=True))
    untrained = run(arguments(base, rows, tmp_path / "untrained", do_predict=True))
    assert figures["predict_bleu-4"] > untrained["predict_bleu-4"] + 10
    with load_pipeline(tmp_path / "full" / "checkpoint-50") as pipe:
        assert pipe.chat(ROWS[0]["content"], temperature=0, max_new_tokens=16)[0] == ROWS[0]["summary"]


def test_full_runs_resume_too(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"do_train": True, "max_steps": 4, "save_steps": 2, "learning_rate": 0.01}
    run(arguments(base, rows, tmp_path / "whole", **options))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    run(arguments(base, rows, tmp_path / "cut", resume_from_checkpoint="true", **options))
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_quantized_weights_cannot_be_trained(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="Quantized weights cannot be trained"):
        arguments(base, rows, tmp_path, do_train=True, quantization_bit=4)
