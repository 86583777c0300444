"""The ChatGLM-6B network against outputs of the original code. What is left on purpose: docs/lab/numerics.md."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm import ChatGLMForConditionalGeneration
from chatglm.engine.decoder import BatchDecoder
from chatglm.nn.kv_cache import KVCache
from tests.golden.cases import GRADIENT_BOUND, assert_close, build, facts, sequence_first, tensors

FORWARD = [
    ("main", "forward_gmask"),
    ("main", "forward_gmask_continued"),
    ("main", "forward_mask"),
    ("deep28", "forward"),
    ("positions_1d", "forward_gmask"),
    ("positions_1d", "forward_mask"),
    ("prefix_embedding", "forward"),
    ("prefix_projection", "forward"),
]
UNREACHABLE = 1_000_000


@pytest.mark.parametrize(("folder", "case"), FORWARD)
@torch.no_grad()
def test_forward(folder: str, case: str) -> None:
    """Logits, hidden states, attention, cache, positions and mask of one pass, all derived from the ids alone."""
    golden = tensors(f"chatglm_v1/{folder}", case)
    model = build(f"chatglm_v1/{folder}")
    output = model(golden["input_ids"], use_cache=True, output_hidden_states=True, output_attentions=True)
    assert_close(output.logits, golden["logits"])
    for i, hidden in enumerate(output.hidden_states):
        assert_close(hidden.transpose(0, 1), golden[f"hidden.{i}"])
    for i, attention in enumerate(output.attentions):
        if f"attention_probs.{i}" in golden:
            assert_close(attention.flatten(0, 1), golden[f"attention_probs.{i}"])
    if "past.0.key" in golden:
        key, value = sequence_first(output.past_key_values, 0)
        assert_close(key, golden["past.0.key"])
        assert_close(value, golden["past.0.value"])
    layout = BatchDecoder(model).prompt_layout(golden["input_ids"])
    num_ids = golden["input_ids"].shape[1]
    if "position_ids" in golden:
        assert torch.equal(layout.positions(0, num_ids), golden["position_ids"])
    if "attention_mask" in golden:
        assert torch.equal(~layout.visible(0, num_ids), golden["attention_mask"])


@pytest.mark.parametrize(("folder", "case"), FORWARD)
@torch.no_grad()
def test_fused_attention_equals_written_out(folder: str, case: str) -> None:
    golden = tensors(f"chatglm_v1/{folder}", case)
    assert_close(build(f"chatglm_v1/{folder}")(golden["input_ids"]).logits, golden["logits"])


@pytest.mark.parametrize("folder", ["prefix_embedding", "prefix_projection"])
@torch.no_grad()
def test_prefix_tensors(folder: str) -> None:
    golden = tensors(f"chatglm_v1/{folder}", "forward")
    encoder = build(f"chatglm_v1/{folder}").transformer.prefix_encoder
    for i, (key, value) in enumerate(encoder(2, torch.float32)):
        assert_close(key.permute(2, 0, 1, 3), golden[f"prefix.{i}.key"])
        assert_close(value.permute(2, 0, 1, 3), golden[f"prefix.{i}.value"])


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("folder", ["main", "deep28"])
@torch.no_grad()
def test_half_precision_is_no_further_off_than_the_original(folder: str, name: str, dtype: torch.dtype) -> None:
    case = f"forward_{name}"
    golden = tensors(f"chatglm_v1/{folder}", case)
    reference = golden.get("logits_ref")
    if reference is None:
        reference = build(f"chatglm_v1/{folder}")(golden["input_ids"]).logits
    ours = build(f"chatglm_v1/{folder}", dtype)(golden["input_ids"]).logits.float()
    # On average; which single logit is the furthest off is chance.
    error, original_error = (float((x - reference).abs().mean()) for x in (ours, golden["logits"].float()))
    assert error <= 1.1 * original_error


@torch.no_grad()
def test_left_padded_batch() -> None:
    """With the tokenizer's mask and positions, a plain 0/1 mask, and ids alone; pad places are not compared."""
    golden = tensors("chatglm_v1/main", "batch_leftpad")
    ids = golden["input_ids"]
    is_real = ids != 3
    model = build("chatglm_v1/main")
    as_upstream = model(
        ids,
        attention_mask=golden["tok_attention_mask"],
        position_ids=golden["tok_position_ids"],
        use_cache=True,
        output_hidden_states=True,
    )
    for i, hidden in enumerate(as_upstream.hidden_states):
        assert_close(hidden[is_real], golden[f"tok_hidden.{i}"].transpose(0, 1)[is_real])
    for ours, name in zip(sequence_first(as_upstream.past_key_values, 0), ("key", "value"), strict=True):
        assert_close(ours.transpose(0, 1)[is_real], golden[f"tok_past.0.{name}"].transpose(0, 1)[is_real])
    for logits in (as_upstream.logits, model(ids, attention_mask=is_real.long()).logits, model(ids).logits):
        assert_close(logits[is_real], golden["tok_logits"][is_real])
    for row, unpadded in enumerate(facts("chatglm_v1/main", "batch_leftpad")["unpadded"]):
        single = model(torch.tensor([unpadded])).logits[0]
        assert_close(single, golden["tok_logits"][row, -len(unpadded) :])


@torch.no_grad()
def test_one_row_positions_batch_equals_single() -> None:
    """Upstream lets pads be seen and counted when it makes the mask itself; here they are neither."""
    ids = tensors("chatglm_v1/positions_1d", "batch_own")["input_ids"]
    model = build("chatglm_v1/positions_1d")
    logits = model(ids).logits
    for row, row_ids in enumerate(ids):
        alone = row_ids[row_ids != 3]
        assert_close(logits[row, -len(alone) :], model(alone[None]).logits[0])


def step_logits(model: ChatGLMForConditionalGeneration, ids: Tensor, num_prompt: int, cache: Any) -> Tensor:
    """Logits of a prompt pass followed by one id at a time through a cache."""
    positions = BatchDecoder(model).prompt_layout(ids).positions(0, ids.shape[1])
    rows = [model(ids[:, :num_prompt], past_key_values=cache).logits]
    for n in range(num_prompt, ids.shape[1]):
        rows.append(model(ids[:, n : n + 1], position_ids=positions[..., n : n + 1], past_key_values=cache).logits)
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("folder", ["main", "prefix_embedding", "prefix_projection"])
@torch.no_grad()
def test_incremental(folder: str) -> None:
    case = "incremental" if folder == "main" else "incremental_and_greedy"
    golden = tensors(f"chatglm_v1/{folder}", case)
    model = build(f"chatglm_v1/{folder}")
    num_prompt = facts(f"chatglm_v1/{folder}", case)["n_prompt"]
    for cache in (KVCache(model.config.num_layers), KVCache(model.config.num_layers, capacity=1)):
        assert_close(step_logits(model, golden["input_ids"], num_prompt, cache), golden["step_logits"])


@torch.no_grad()
def test_incremental_left_padded_batch() -> None:
    golden = tensors("chatglm_v1/main", "incremental_batch")
    ids, prompt_mask = golden["input_ids"], golden["prompt_attention_mask"]
    is_real = ids != 3
    num_prompt = prompt_mask.shape[-1]
    model = build("chatglm_v1/main")
    cache = KVCache(model.config.num_layers)
    rows = [
        model(
            ids[:, :num_prompt],
            attention_mask=prompt_mask,
            position_ids=golden["prompt_position_ids"],
            past_key_values=cache,
        ).logits
    ]
    for i, n in enumerate(range(num_prompt, ids.shape[1])):
        rows.append(
            model(
                ids[:, n : n + 1],
                attention_mask=is_real[:, : n + 1].long(),
                position_ids=golden["step_position_ids"][..., i : i + 1],
                past_key_values=cache,
            ).logits
        )
    assert_close(torch.cat(rows, dim=1)[is_real], golden["step_logits"][is_real])
    assert torch.equal(
        BatchDecoder(model).prompt_layout(ids).positions(num_prompt, ids.shape[1]), golden["step_position_ids"]
    )


@pytest.mark.parametrize("kind", ["gmask", "mask"])
@torch.no_grad()
def test_one_row_positions_cached_equals_full(kind: str) -> None:
    """Upstream's cached [gMASK] steps with one position row disagree with its full pass; ours follow the latter."""
    golden = tensors("chatglm_v1/positions_1d", "incremental_upstream_quirk")
    model = build("chatglm_v1/positions_1d")
    ids = golden[f"{kind}_input_ids"]
    num_prompt = ids.shape[1] - golden[f"{kind}_step_position_ids"].shape[-1]
    cached = step_logits(model, ids, num_prompt, KVCache(model.config.num_layers))
    assert_close(cached, golden[f"{kind}_full_logits"])


@pytest.mark.parametrize(
    ("folder", "case"), [("main", "loss"), ("prefix_embedding", "loss"), ("prefix_projection", "loss")]
)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_loss_and_gradients(folder: str, case: str, recompute: bool) -> None:
    golden = tensors(f"chatglm_v1/{folder}", case)
    model = build(f"chatglm_v1/{folder}")
    if recompute:
        # Recomputation only happens in training mode; the prefix's dropout must stay off for the numbers.
        model.train()
        model.gradient_checkpointing_enable()
        if model.transformer.prefix_encoder is not None:
            model.transformer.prefix_encoder.eval()
    output = model(golden["input_ids"], labels=golden["labels"])
    output.loss.backward()
    assert_close(output.loss.detach(), golden["loss"])
    parameters = dict(model.named_parameters())
    for name in (key.removeprefix("grad.") for key in golden if key.startswith("grad.")):
        assert_close(parameters[name].grad, golden[f"grad.{name}"], GRADIENT_BOUND)


def test_a_prefix_is_all_that_trains() -> None:
    model = build("chatglm_v1/prefix_projection")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "prefix_encoder" in name}


@pytest.mark.parametrize("case", ["greedy", "greedy_mask"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_greedy(case: str, use_cache: bool) -> None:
    golden = tensors("chatglm_v1/main", case)
    model = build("chatglm_v1/main")
    num_new = golden["scores"].shape[1]
    output = model.generate(
        golden["input_ids"],
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=UNREACHABLE,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, golden["sequences"])
    assert_close(torch.stack(output.logits, dim=1), golden["scores"])


@pytest.mark.parametrize("folder", ["prefix_embedding", "prefix_projection"])
def test_generate_greedy_with_a_prefix(folder: str) -> None:
    golden = tensors(f"chatglm_v1/{folder}", "incremental_and_greedy")
    sequences = golden["greedy_sequences"]
    num_prompt = facts(f"chatglm_v1/{folder}", "incremental_and_greedy")["n_prompt"]
    output = build(f"chatglm_v1/{folder}").generate(
        golden["input_ids"][:, :num_prompt], max_length=sequences.shape[1], do_sample=False, eos_token_id=UNREACHABLE
    )
    assert torch.equal(output, sequences)


@pytest.mark.parametrize("form", ["as the tokenizer pads", "0/1 mask", "ids alone"])
@pytest.mark.parametrize("with_eos", [False, True])
def test_generate_greedy_left_padded_batch(form: str, with_eos: bool) -> None:
    golden = tensors("chatglm_v1/main", "greedy_batch")
    inputs: dict[str, Any] = {"input_ids": golden["input_ids"]}
    if form == "as the tokenizer pads":
        inputs |= {"attention_mask": golden["attention_mask"], "position_ids": golden["position_ids"]}
    elif form == "0/1 mask":
        inputs["attention_mask"] = (golden["input_ids"] != 3).long()
    eos = facts("chatglm_v1/main", "greedy_batch")["eos_variant_id"] if with_eos else UNREACHABLE
    expected = golden["eos_variant_sequences" if with_eos else "sequences"]
    output = build("chatglm_v1/main").generate(**inputs, max_length=21, do_sample=False, eos_token_id=eos)
    assert torch.equal(output, expected)


def test_generate_stops_at_eos() -> None:
    golden = tensors("chatglm_v1/main", "greedy_eos")
    eos = facts("chatglm_v1/main", "greedy_eos")["eos_token_id"]
    output = build("chatglm_v1/main").generate(
        golden["input_ids"], max_new_tokens=20, do_sample=False, eos_token_id=eos
    )
    assert torch.equal(output, golden["sequences"])


def test_generate_beams() -> None:
    golden = tensors("chatglm_v1/main", "beam")
    output = build("chatglm_v1/main").generate(
        golden["input_ids"],
        max_new_tokens=8,
        num_beams=3,
        do_sample=False,
        eos_token_id=UNREACHABLE,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, golden["sequences"])
    # transformers 4 divided the summed log-probability by the whole length, 5 divides by the new tokens.
    num_new, num_all = 8, golden["sequences"].shape[1]
    assert_close(output.sequences_scores * num_new / num_all, golden["sequences_scores"])
