"""The networks of ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B against outputs of the original code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm.kernels.packing import dequantize
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.rotary import pair_tables
from tests.golden.cases import GOLDEN, GRADIENT_BOUND, assert_close, build, facts, family_named, tensors

FAMILIES = ("chatglm2", "chatglm3", "codegeex2", "glm4", "long_context")
UNREACHABLE = 1_000_000


def folders_with(case: str) -> list[str]:
    paths = (path for family in FAMILIES for path in sorted(GOLDEN.glob(f"{family}/*/{case}.safetensors")))
    found = (str(path.parent.relative_to(GOLDEN)) for path in paths)
    return [folder for folder in found if "native" not in folder and "classification" not in folder]


def batch_first(stored: Tensor, folder: str) -> Tensor:
    """Hidden states of GLM-4 are stored so, those of the others [seq, batch, hidden]."""
    return stored if folder.startswith("glm4") else stored.transpose(0, 1)


def assert_same_cache(cache: Any, golden: dict[str, Tensor], folder: str) -> None:
    """The stored layers, [B, G, S, D]."""
    order = (0, 1, 2, 3) if folder.startswith("glm4") else (1, 2, 0, 3)
    for name in (name for name in golden if name.startswith("past.")):
        _, layer, part = name.split(".")
        ours = getattr(cache.layers[int(layer)], f"{part}s")
        assert_close(ours, golden[name].permute(order))


@pytest.mark.parametrize("folder", folders_with("forward"))
@torch.no_grad()
def test_forward(folder: str) -> None:
    golden, model = tensors(folder, "forward"), build(folder)
    output = model(golden["input_ids"], use_cache=True, output_hidden_states=True, output_attentions=True)
    assert_close(output.logits, golden["logits"])
    hidden = [batch_first(golden[f"hidden.{i}"], folder) for i in range(model.config.num_layers + 1)]
    hidden[-1] = model.transformer.encoder.final_layernorm(hidden[-1])
    for ours, theirs in zip(output.hidden_states, hidden, strict=True):
        assert_close(ours, theirs)
    assert_same_cache(output.past_key_values, golden, folder)
    assert_close(model(golden["input_ids"]).logits, golden["logits"])  # by the library's fused attention
    if "prefix.0.key" in golden:
        for i, (key, value) in enumerate(model.transformer.prefix_encoder(len(golden["input_ids"]), torch.float32)):
            assert_close(key.permute(2, 0, 1, 3), golden[f"prefix.{i}.key"])
            assert_close(value.permute(2, 0, 1, 3), golden[f"prefix.{i}.value"])


@pytest.mark.parametrize("folder", folders_with("forward_bf16"))
@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@torch.no_grad()
def test_half_precision_is_no_further_off_than_upstream(folder: str, name: str, dtype: torch.dtype) -> None:
    golden = tensors(folder, f"forward_{name}")
    ours = build(folder, dtype)(golden["input_ids"]).logits.float()
    error, upstream_error = (float((x - golden["logits_ref"]).abs().mean()) for x in (ours, golden["logits"].float()))
    assert error <= 1.1 * upstream_error


@pytest.mark.parametrize("folder", folders_with("batch_leftpad"))
@torch.no_grad()
def test_left_padded_batch(folder: str) -> None:
    """With the tokenizer's mask and positions, with the mask alone, with neither; pad places are not compared."""
    golden, model = tensors(folder, "batch_leftpad"), build(folder)
    ids, mask = golden["input_ids"], golden["attention_mask"]
    is_real = mask.bool()
    for given in ({"attention_mask": mask, "position_ids": golden["position_ids"]}, {"attention_mask": mask}, {}):
        output = model(ids, **given, use_cache=True, output_hidden_states=True)
        assert_close(output.logits[is_real], golden["logits"][is_real])
        for i in range(model.config.num_layers):
            theirs = batch_first(golden[f"hidden.{i}"], folder)
            assert_close(output.hidden_states[i][is_real], theirs[is_real])
    for row, real in zip(ids, is_real, strict=True):
        alone = model(row[real][None]).logits[0]
        assert_close(alone, golden["logits"][(ids == row).all(dim=1)][0][real])


@pytest.mark.parametrize("folder", folders_with("incremental"))
@torch.no_grad()
def test_incremental(folder: str) -> None:
    """One by one, the rest at once, and in three calls; caches of ours and of the library."""
    golden, model = tensors(folder, "incremental"), build(folder)
    ids, known = golden["input_ids"], facts(folder, "incremental")
    num_prompt, end = known["n_prompt"], ids.shape[1]
    steps = [0, *range(num_prompt, end + 1)]
    assert_close(in_pieces(model, ids, steps), golden["step_logits"])
    assert_close(in_pieces(model, ids, [0, num_prompt, end])[:, num_prompt:], golden["chunk2_logits"])
    if "chunk3_cuts" in known:
        assert_close(in_pieces(model, ids, [0, *known["chunk3_cuts"], end]), golden["chunk3_logits"])
    assert_close(model(ids).logits, golden["full_logits"])


def in_pieces(model: Any, ids: Tensor, cuts: list[int]) -> Tensor:
    """Logits of calls through one cache; positions are derived."""
    cache = KVCache(model.config.num_layers)
    pieces = pairwise(cuts)
    return torch.cat([model(ids[:, start:stop], past_key_values=cache).logits for start, stop in pieces], dim=1)


@pytest.mark.parametrize("folder", folders_with("incremental_batch"))
@torch.no_grad()
def test_incremental_left_padded_batch(folder: str) -> None:
    golden, model = tensors(folder, "incremental_batch"), build(folder)
    ids, prompt_mask = golden["input_ids"], golden["prompt_attention_mask"]
    num_prompt = prompt_mask.shape[1]
    mask = torch.cat((prompt_mask, torch.ones_like(ids[:, num_prompt:])), dim=1)
    cache = KVCache(model.config.num_layers)
    logits = [model(ids[:, :num_prompt], attention_mask=prompt_mask, past_key_values=cache).logits]
    for n in range(num_prompt, ids.shape[1]):
        logits.append(model(ids[:, n : n + 1], attention_mask=mask[:, : n + 1], past_key_values=cache).logits)
    assert_close(torch.cat(logits, dim=1)[mask.bool()], golden["step_logits"][mask.bool()])


@pytest.mark.parametrize("folder", folders_with("loss"))
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_loss_and_gradients(folder: str, recompute: bool) -> None:
    golden, model = tensors(folder, "loss"), build(folder)
    if recompute:
        model.train()
        model.gradient_checkpointing_enable()
        if model.transformer.prefix_encoder is not None:
            model.transformer.prefix_encoder.eval()
    given = {"attention_mask": golden["attention_mask"]} if "attention_mask" in golden else {}
    output = model(golden["input_ids"], labels=golden["labels"], **given)
    output.loss.backward()
    assert_close(output.loss.detach(), golden["loss"])
    parameters = dict(model.named_parameters())
    for name in (key.removeprefix("grad.") for key in golden if key.startswith("grad.")):
        assert_close(parameters[name].grad, golden[f"grad.{name}"], GRADIENT_BOUND)


@pytest.mark.parametrize("folder", folders_with("greedy"))
def test_generate_greedy(folder: str) -> None:
    golden, model = tensors(folder, "greedy"), build(folder)
    output = model.generate(
        golden["input_ids"],
        max_length=golden["sequences"].shape[1],
        do_sample=False,
        eos_token_id=UNREACHABLE,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, golden["sequences"])
    if "scores" in golden:
        assert_close(torch.stack(output.logits, dim=1), golden["scores"])


@pytest.mark.parametrize("folder", folders_with("batch_and_greedy"))
@torch.no_grad()
def test_a_prefix_in_a_batch_and_while_generating(folder: str) -> None:
    golden, model = tensors(folder, "batch_and_greedy"), build(folder)
    mask = golden["attention_mask"].bool()
    logits = model(golden["input_ids"], attention_mask=golden["attention_mask"]).logits
    assert_close(logits[mask], golden["logits"][mask])
    alone, wanted = golden["input_ids"][0][mask[0]][None], golden["greedy_sequences"]
    output = model.generate(alone, max_length=wanted.shape[1], do_sample=False, eos_token_id=UNREACHABLE)
    assert torch.equal(output, wanted)


@pytest.mark.parametrize("folder", folders_with("prefix"))
@torch.no_grad()
def test_prefix_tensors(folder: str) -> None:
    golden = tensors(folder, "prefix")
    for i, (key, value) in enumerate(build(folder).transformer.prefix_encoder(1, torch.float32)):
        assert_close(key.permute(2, 0, 1, 3), golden[f"prefix.{i}.key"])
        assert_close(value.permute(2, 0, 1, 3), golden[f"prefix.{i}.value"])


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_quantized(bits: int) -> None:
    """Bytes and scales from float16 weights; logits of those weights, written out, in float32."""
    folder = "chatglm3/quantized_model"
    golden, packed = tensors(folder, f"int{bits}"), build(folder, torch.float16).quantize(bits)
    stored = {name.removeprefix("state."): tensor for name, tensor in golden.items() if name.startswith("state.")}
    ours = packed.state_dict()
    for name, tensor in stored.items():
        assert torch.equal(ours[name].to(tensor.dtype), tensor)
    model = build(folder)
    names = [name.removesuffix(".weight_scale") for name in ours if name.endswith(".weight_scale")]
    for linear in names:
        weight, scale = ours[f"{linear}.weight"], ours[f"{linear}.weight_scale"].half()
        model.get_submodule(linear).weight.copy_(dequantize(weight, scale, bits, torch.float16))
    assert_close(model(golden["input_ids"]).logits, golden["logits_dequantised_float32"])
    assert len(stored) == 2 * len(names)


@pytest.mark.parametrize("folder", folders_with("greedy_batch"))
def test_generate_greedy_left_padded_batch(folder: str) -> None:
    golden, known, model = tensors(folder, "greedy_batch"), facts(folder, "greedy_batch"), build(folder)
    masks = {"attention_mask": golden["attention_mask"]}, {}
    wanted = [("sequences", UNREACHABLE)]
    wanted += [("eos_variant_sequences", known["eos_variant_ids"])] if "eos_variant_ids" in known else []
    for mask in masks:
        for name, eos in wanted:
            length = golden["sequences"].shape[1]
            output = model.generate(golden["input_ids"], **mask, max_length=length, do_sample=False, eos_token_id=eos)
            assert torch.equal(output, golden[name])


@pytest.mark.parametrize(
    ("folder", "case"), [(f, case) for case in ("greedy_stop_ids", "greedy_eos") for f in folders_with(case)]
)
def test_generate_stops_at_any_of_the_end_ids(folder: str, case: str) -> None:
    golden, eos = tensors(folder, case), facts(folder, case)["eos_token_id"]
    output = build(folder).generate(golden["input_ids"], max_new_tokens=40, do_sample=False, eos_token_id=eos)
    assert torch.equal(output, golden["sequences"])


ROTARY = [
    ("long_context", name, family, ratio, length)
    for name, family, ratio, length in (
        ("chatglm2", "chatglm2", 1, 32768),
        ("chatglm2_32k", "chatglm2", 16, 32768),
        ("chatglm3", "chatglm3", 1, 8192),
        ("chatglm3_32k", "chatglm3", 50, 32768),
        ("chatglm3_128k", "chatglm3", 500, 131072),
    )
] + [("glm4", "glm4_9b", "glm4", 500, 131072), ("glm4", "glm4_9b_1m", "glm4", 10000, 131072)]


@pytest.mark.parametrize(("folder", "name", "family", "ratio", "length"), ROTARY)
def test_rotary_tables(folder: str, name: str, family: str, ratio: float, length: int) -> None:
    golden = tensors(folder, "rope_tables")
    config = family_named(family).config({"rope_ratio": ratio})
    wanted = golden[f"{name}.fp32"]
    positions = golden["positions"][: len(wanted)][None]
    tables = pair_tables(positions, 64, torch.float32, config.rotary_base, config.position_divisor)
    ours = torch.stack(tables, dim=-1)[0, 0]
    assert float((ours - wanted).abs().max()) <= 1e-6
