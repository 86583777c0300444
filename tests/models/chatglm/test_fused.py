"""Prompts and decode steps by the fused kernels give what the plain layers give over the same 16-bit cache."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from chatglm import ChatGLMForConditionalGeneration, kernels
from chatglm.engine.decoder import BatchDecoder
from chatglm.kernels import dispatch
from chatglm.loading import load
from chatglm.models.chatglm.fused import FusedSelfAttention, cache_dtype, fuse
from chatglm.models.chatglm.network import GLU, SelfAttention
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.rotary import head_tables
from tests.golden.cases import build, tensors

PROMPTS = Path(__file__).parents[3] / "tools" / "demo_model" / "data" / "eval100.jsonl"


@pytest.fixture(autouse=True, scope="module")
def native() -> Iterator[None]:
    with kernels.use("native") as name:
        if name != "native":
            pytest.skip("The native kernels cannot be compiled here.")
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # networks as small as these only wait for a second thread
        yield
        torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    """The demo model with 4-bit weights, and its tokenizer."""
    loaded = load("demo", dtype="fp32", quantize=4)
    return loaded.model, loaded.tokenizer


def plain(model: ChatGLMForConditionalGeneration) -> ChatGLMForConditionalGeneration:
    """The same weights with the network's own layers."""
    other = copy.deepcopy(model)
    for layer in other.transformer.layers:
        layer.attention.__class__, layer.mlp.__class__ = SelfAttention, GLU
    return other


def prompts(tokenizer: Any, count: int) -> list[Tensor]:
    entries = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    queries = [entry["turns"][0] for entry in entries if entry["kind"] == "basic"][:count]
    return [tokenizer(query, return_tensors="pt")["input_ids"] for query in queries]


def half_cache(model: Any, capacity: int = 8) -> KVCache:
    return KVCache(model.config.num_layers, capacity, torch.float16)


@torch.inference_mode()
def forced(model: Any, ids: Tensor, num_prompt: int, cache: Any) -> Tensor:
    """Scores [n, V] after the prompt and each later id of `ids`, decoded one by one."""
    layout = BatchDecoder(model).prompt_layout(ids[:, :num_prompt])
    rows = [BatchDecoder(model).prefill(ids[:, :num_prompt], layout, cache)]
    rows += [BatchDecoder(model).decode(ids[:, n : n + 1], [layout], [cache]) for n in range(num_prompt, ids.shape[1])]
    return torch.cat(rows)


@torch.inference_mode()
def greedy(model: Any, ids: Tensor, cache: Any, limit: int = 40) -> list[int]:
    layout = BatchDecoder(model).prompt_layout(ids)
    made = [int(BatchDecoder(model).prefill(ids, layout, cache).argmax())]
    while made[-1] != model.config.eos_token_id and len(made) < limit:
        made.append(int(BatchDecoder(model).decode(torch.tensor([made[-1:]]), [layout], [cache]).argmax()))
    return made


@torch.inference_mode()
@pytest.mark.parametrize("folder", ["main", "positions_1d"])
def test_one_layer(folder: str) -> None:
    """Given the same input and the same cache, a fused step differs from the plain one by rounding of float32 alone."""
    own = build(f"chatglm_v1/{folder}").transformer.layers[0].attention
    layer = FusedSelfAttention(own)
    caches = KVCache(1, 3, torch.float16), KVCache(1, 3, torch.float16)
    for step in range(40):
        x = torch.randn(1, 5 if step == 0 else 1, own.dense.in_features)
        positions = torch.full((1, 2, x.shape[1]) if own.num_parts == 2 else (1, x.shape[1]), 7 * step)
        tables = head_tables(positions, own.head_width, torch.float32)
        ours = layer(x, tables, None, caches[0], None, None)
        theirs = own(x, tables, None, caches[1], None, None)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for mine, others in zip(caches[0].layer(0), caches[1].layer(0), strict=True):
        assert torch.equal(mine, others)


def test_demo_scores_equal_the_plain_layers(demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To 5e-4 of the largest score. What float32 rounds differently makes a key of a later layer round to the next half
    here and there; activations rounded to int8 would make that a hundred times larger, so they are left as they are."""
    model, tokenizer = demo
    other = plain(model)
    native = dispatch.native_kernels()
    assert native is not None
    monkeypatch.setattr(kernels, "linear", native.linear_float)
    for ids in prompts(tokenizer, 2):
        whole = torch.cat((ids, torch.tensor([greedy(model, ids, half_cache(model))])), dim=1)
        ours, theirs = (forced(network, whole, ids.shape[1], half_cache(model)) for network in (model, other))
        assert not torch.equal(ours, theirs)  # or one has taken the layers of the other
        assert (ours - theirs).abs().max() <= 5e-4 * theirs.abs().max()


@pytest.mark.parametrize("num_prompts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_demo_answers_as_with_a_float_cache(demo: tuple[Any, Any], num_prompts: int) -> None:
    """Rounding the cache to half changes no reply."""
    model, tokenizer = demo
    other = plain(model)
    for ids in prompts(tokenizer, num_prompts):
        expected = greedy(other, ids, KVCache(model.config.num_layers))
        assert greedy(model, ids, half_cache(model)) == expected


@pytest.mark.parametrize("folder", ["main", "positions_1d", "prefix_embedding"])
def test_every_kind_of_network(folder: str) -> None:
    """One and two position rows, and a prefix encoder, whose keys come into the cache with the first call."""
    model = build(f"chatglm_v1/{folder}").quantize(8)
    ids = tensors("chatglm_v1/main", "forward_gmask_continued")["input_ids"]
    num_prompt = int(BatchDecoder(model).prompt_layout(ids).sop[0]) + 1
    cache = BatchDecoder(model).new_cache(1)
    assert cache.storage_dtype is torch.float16
    ours = forced(model, ids, num_prompt, cache)
    torch.testing.assert_close(ours, forced(plain(model), ids, num_prompt, half_cache(model)), atol=1e-4, rtol=1e-5)
    assert cache.get_seq_length() == ids.shape[1] + (model.config.pre_seq_len or 0)


@torch.inference_mode()
def test_long_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """2048 positions: the last step over the whole of them equals the plain one; activations are left as they are."""
    native = dispatch.native_kernels()
    assert native is not None
    monkeypatch.setattr(kernels, "linear", native.linear_float)
    model = build("chatglm_v1/main", max_sequence_length=2048).quantize(8)
    generator = torch.Generator().manual_seed(0)
    special = [model.config.gmask_token_id, model.config.bos_token_id]
    text = torch.randint(9, 100, (1, 2040), generator=generator)
    ids = torch.cat((text, torch.tensor([special]), text[:, :6]), dim=1)
    assert ids.shape[1] == 2048
    ours = forced(model, ids, 2042, BatchDecoder(model).new_cache(2042))
    torch.testing.assert_close(ours, forced(plain(model), ids, 2042, half_cache(model)), atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_packed_steps_are_those_of_each_request_alone() -> None:
    """Caches of different lengths in one call: what each stores and answers is what it would alone."""
    model = build("chatglm_v1/main").quantize(8)
    ids = tensors("chatglm_v1/main", "forward_gmask_continued")["input_ids"]
    num_prompt = int(BatchDecoder(model).prompt_layout(ids).sop[0]) + 1
    layout = BatchDecoder(model).prompt_layout(ids[:, :num_prompt])
    alone, together = ([BatchDecoder(model).new_cache(8) for _ in range(3)] for _ in range(2))
    for number, cache in enumerate((*alone, *together)):
        BatchDecoder(model).prefill(ids[:, : num_prompt + number % 3], layout, cache)
    for token in ids[0, -4:].tolist():
        expected = [BatchDecoder(model).decode(torch.tensor([[token]]), [layout], [cache]) for cache in alone]
        scores = BatchDecoder(model).decode(torch.full((3, 1), token), [layout] * 3, together)
        torch.testing.assert_close(scores, torch.cat(expected), atol=1e-4, rtol=1e-5)
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.get_seq_length(2) == theirs.get_seq_length(2)
        torch.testing.assert_close(mine.layer(0), theirs.layer(0), atol=0, rtol=1e-3)


class Counted:
    """A fused kernel, counting its calls."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.calls = kernel, 0

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        return self.kernel(*args)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Counted:
    steps = Counted(kernels.attend_one)
    monkeypatch.setattr(kernels, "attend_one", steps)
    return steps


@pytest.fixture
def prompt_passes(monkeypatch: pytest.MonkeyPatch) -> Counted:
    prompt_passes = Counted(kernels.attend_prompt)
    monkeypatch.setattr(kernels, "attend_prompt", prompt_passes)
    return prompt_passes


def test_prompts_and_steps_are_fused(steps: Counted, prompt_passes: Counted) -> None:
    """The context is one pass; `<sop>` and each later id are steps, also where requests are packed."""
    model = build("chatglm_v1/main").quantize(8)
    ids = tensors("chatglm_v1/main", "forward_gmask_continued")["input_ids"]
    sop = int(BatchDecoder(model).prompt_layout(ids).sop[0])
    caches = [BatchDecoder(model).new_cache(8) for _ in range(2)]
    for cache in caches:
        forced(model, ids, sop + 1, cache)
    assert prompt_passes.calls == 2 * model.config.num_layers
    assert steps.calls == 2 * (ids.shape[1] - sop) * model.config.num_layers
    with torch.inference_mode():
        BatchDecoder(model).decode(ids[:1, :2].T, [BatchDecoder(model).prompt_layout(ids)] * 2, caches)
    assert steps.calls == 2 * (ids.shape[1] - sop + 1) * model.config.num_layers


@torch.inference_mode()
def test_packed_prompts_are_those_of_each_request_alone(prompt_passes: Counted) -> None:
    model = build("chatglm_v1/main").quantize(8)
    ids = tensors("chatglm_v1/main", "forward_gmask")["input_ids"][:1]
    longer = torch.cat((ids[:, :3], ids), dim=1)
    prompts = [ids, longer, ids]
    layouts = [BatchDecoder(model).prompt_layout(prompt) for prompt in prompts]
    alone, together = ([BatchDecoder(model).new_cache(8) for _ in prompts] for _ in range(2))
    for prompt, layout, cache in zip(prompts, layouts, alone, strict=True):
        BatchDecoder(model).fill_caches([prompt], [layout], [cache])
    BatchDecoder(model).fill_caches(prompts, layouts, together)
    assert prompt_passes.calls == 6 * model.config.num_layers
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine.layer(2), theirs.layer(2), atol=2e-3, rtol=1e-2)


def test_other_calls_are_the_plain_layers(steps: Counted, prompt_passes: Counted) -> None:
    """Gradients, probabilities, transformers' caches, batches and networks of another type never meet the kernel."""
    model = build("chatglm_v1/main").quantize(8)
    other = plain(model)
    ids = tensors("chatglm_v1/main", "forward_gmask")["input_ids"]
    wanted = other(ids, output_attentions=True)
    got = model(ids, output_attentions=True)
    assert torch.equal(got.logits, wanted.logits)
    assert torch.equal(got.attentions[2], wanted.attentions[2])
    with torch.no_grad():
        assert torch.equal(
            model.generate(ids, max_new_tokens=4, do_sample=False),
            other.generate(ids, max_new_tokens=4, do_sample=False),
        )
        batch = half_cache(model)
        positions = BatchDecoder(model).prompt_layout(ids).positions(0, ids.shape[1])
        two_rows, two_positions = ids[:1].repeat(2, 1), positions[:1].repeat(2, 1, 1)
        model(two_rows, position_ids=two_positions, past_key_values=batch)
        model(two_rows[:, -1:], position_ids=two_positions[..., -1:], past_key_values=batch)
    cache = half_cache(model)
    layout = BatchDecoder(model).prompt_layout(ids[:1])
    BatchDecoder(model).prefill(ids[:1], layout, cache)
    assert BatchDecoder(model).decode(ids[:1, -1:], [layout], [cache]).requires_grad
    with torch.inference_mode():
        low = model.to(torch.bfloat16)
        assert BatchDecoder(low).new_cache(8).storage_dtype is None
        BatchDecoder(low).decode(ids[:1, -1:], [layout], [half_cache_of(low, ids[:1])])
    assert steps.calls == prompt_passes.calls == 0


def test_a_prompt_turned_and_activated_in_place_is_the_plain_one() -> None:
    """One block, given the same input: its products round activations, so last bits do not grow on the way."""
    model = build("chatglm_v1/main").quantize(8)
    other = plain(model)
    ids = tensors("chatglm_v1/main", "forward_gmask")["input_ids"]
    layout = BatchDecoder(model).prompt_layout(ids)
    positions, visible = layout.positions(0, ids.shape[1]), layout.visible(0, ids.shape[1])
    x = torch.randn(*ids.shape, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    head_width = model.config.hidden_size // model.config.num_attention_heads
    tables = head_tables(positions, head_width, torch.float32)
    with torch.inference_mode():
        ours, theirs = (one.transformer.layers[0](x, tables, visible) for one in (model, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2 * float(theirs.abs().max()))
    assert (ours - theirs).abs().median() < 1e-5


def half_cache_of(model: Any, ids: Tensor) -> KVCache:
    cache = half_cache(model)
    BatchDecoder(model).prefill(ids, BatchDecoder(model).prompt_layout(ids), cache)
    return cache


def test_other_kernels_keep_the_plain_cache() -> None:
    model = build("chatglm_v1/main").quantize(8)
    assert cache_dtype(model.transformer) is torch.float16
    for name in ("reference", "exact", "torch"):
        with kernels.use(name):
            assert BatchDecoder(model).new_cache(8).storage_dtype is None
    assert BatchDecoder(build("chatglm_v1/main")).new_cache(8).storage_dtype is None


def test_fusing_changes_no_name_and_copies_nothing() -> None:
    model = build("chatglm_v1/main")
    before = dict(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    fuse(model.transformer)
    attention = model.transformer.layers[0].attention
    fuse(model.transformer)
    assert model.transformer.layers[0].attention is attention
    assert isinstance(attention, FusedSelfAttention)
    assert not attention.training
    assert [name for name, _ in model.named_modules()] == names
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)


def test_quantized_folders_are_fused_whoever_loads_them(tmp_path: Path) -> None:
    build("chatglm_v1/main").quantize(8).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert BatchDecoder(model).new_cache(8).storage_dtype is torch.float16
