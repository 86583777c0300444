"""The real shape, half precision, round trips and laws of the network (numbers: tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from chatglm.engine.decoder import BatchDecoder
from chatglm.errors import InvalidLogitsError, InvalidRequestError
from chatglm.models.chatglm.network import GLMBlock
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.rotary import head_tables
from tests.golden.cases import build, tensors

LAYOUTS = Path(__file__).parents[2] / "golden" / "checkpoint_layouts.json"


def prompt() -> Tensor:
    return tensors("chatglm_v1/main", "forward_gmask")["input_ids"]


@pytest.mark.parametrize(
    ("release", "num_keys", "options"),
    [
        ("chatglm-6b", 368, {}),
        ("chatglm-6b-int8 (quantize(8))", 480, {"quantization_bit": 8}),
        ("chatglm-6b-int4", 480, {"quantization_bit": 4}),
        ("chatglm-6b-int4-qe", 482, {"quantization_bit": 4, "quantization_embeddings": True}),
    ],
)
def test_published_keys_and_shapes(release: str, num_keys: int, options: dict[str, Any]) -> None:
    """The 28-layer network has exactly the published tensors; the 28 inv_freq among them are computed, not stored."""
    published = published_shapes(release)
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**options))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    computed = {name for name in published if name.endswith("rotary_emb.inv_freq")}
    assert len(published) == num_keys
    assert len(computed) == 28
    assert ours == {name: shape for name, shape in published.items() if name not in computed}


def published_shapes(release: str) -> dict[str, tuple[int, ...]]:
    layout = json.loads(LAYOUTS.read_text(encoding="utf-8"))[release]
    return {
        name.replace("layers.0.", f"layers.{layer}."): tuple(shape)
        for name, (shape, _) in layout["keys_outside_layers_and_of_layer_0"].items()
        for layer in (range(layout["layers"]) if "layers.0." in name else (0,))
    }


@pytest.mark.slow
@torch.no_grad()
def test_full_size_layer() -> None:
    """One layer of the real width (4096, 32 heads, inner 16384): bfloat16 stays within its precision of float32."""
    config = ChatGLMConfig(num_layers=1)
    torch.manual_seed(0)
    layer = GLMBlock(config, 0).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() == 2 else None
    x = torch.randn(1, 12, 4096)
    positions = torch.stack((torch.arange(12), torch.zeros(12, dtype=torch.long)))[None]
    reference = layer(x, head_tables(positions, 128, torch.float32), None)
    dtype = torch.bfloat16
    ours = layer.to(dtype)(x.to(dtype), head_tables(positions, 128, dtype), None).float()
    assert (ours - reference).abs().mean() <= 0.01 * reference.abs().mean()


@torch.no_grad()
def test_prefill_and_decode_equal_the_whole_pass() -> None:
    """The mask-free prompt pass, `<sop>` as its own step and one id at a time give the logits of one masked pass."""
    ids = tensors("chatglm_v1/main", "forward_gmask_continued")["input_ids"]
    for folder in ("main", "prefix_embedding"):
        model = build(f"chatglm_v1/{folder}")
        whole = model(ids).logits[0]
        sop = int(BatchDecoder(model).prompt_layout(ids).sop[0])
        for num_prompt in (sop + 1, sop + 3):
            cache = BatchDecoder(model).new_cache(4)
            layout = BatchDecoder(model).prompt_layout(ids[:, :num_prompt])
            rows = [BatchDecoder(model).prefill(ids[:, :num_prompt], layout, cache)]
            rows += [
                BatchDecoder(model).decode(ids[:, n : n + 1], [layout], [cache])
                for n in range(num_prompt, ids.shape[1])
            ]
            torch.testing.assert_close(torch.cat(rows), whole[num_prompt - 1 :], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_both_caches_give_the_same() -> None:
    model = build("chatglm_v1/main")
    ids = prompt()
    own, library = KVCache(3), DynamicCache(config=model.config)
    logits = [model(ids, past_key_values=cache).logits for cache in (own, library)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(own.layer(2)[0], library.layers[2].keys)


@torch.no_grad()
def test_logits_to_keep() -> None:
    model = build("chatglm_v1/main")
    whole = model(prompt()).logits
    torch.testing.assert_close(model(prompt(), logits_to_keep=2).logits, whole[:, -2:])


@torch.no_grad()
def test_embeddings_instead_of_ids() -> None:
    model = build("chatglm_v1/main")
    ids = prompt()
    layout = BatchDecoder(model).prompt_layout(ids)
    output = model(
        inputs_embeds=model.get_input_embeddings()(ids),
        position_ids=layout.positions(0, ids.shape[1]),
        attention_mask=~layout.visible(0, ids.shape[1]),
    )
    torch.testing.assert_close(output.logits, model(ids).logits)


@pytest.mark.parametrize(
    ("ids", "sentence"), [([[9, 10, 11]], "<sop>"), ([[9, 10, 154]], "gMASK")], ids=["no sop", "no mask token"]
)
def test_rows_without_special_ids_are_refused(ids: list[list[int]], sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        build("chatglm_v1/main")(torch.tensor(ids))


def test_a_filled_cache_needs_positions() -> None:
    model = build("chatglm_v1/main")
    cache = model(prompt(), use_cache=True).past_key_values
    with pytest.raises(InvalidRequestError, match="position_ids with a filled cache"):
        model(torch.tensor([[9]]), past_key_values=cache)


def test_generate_refuses_nan() -> None:
    model = build("chatglm_v1/main")
    with torch.no_grad():
        model.transformer.final_layernorm.weight[0] = torch.nan
    with pytest.raises(InvalidLogitsError):
        model.generate(prompt(), max_new_tokens=2, do_sample=False)


def test_first_release_config_finds_its_mask_tokens() -> None:
    """Its config.json names only the first and last special id; both releases have them in the same order."""
    config = ChatGLMConfig(vocab_size=150528, bos_token_id=150004, eos_token_id=150005)
    assert (config.mask_token_id, config.gmask_token_id) == (150000, 150001)
    assert (ChatGLMConfig().mask_token_id, ChatGLMConfig().gmask_token_id) == (130000, 130001)


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(tmp_path: Path, tied: bool) -> None:
    """lm_head is tied after loading exactly when its values equal the embedding's."""
    model = build("chatglm_v1/main")
    if tied:
        with torch.no_grad():
            model.lm_head.weight.copy_(model.transformer.word_embeddings.weight)
    model.save_pretrained(tmp_path)
    loaded = ChatGLMForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.transformer.word_embeddings.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    loaded.save_pretrained(tmp_path / "again")
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert json.loads((tmp_path / "config.json").read_text())["num_layers"] == 3


def test_a_network_from_a_config_is_not_tied() -> None:
    model = ChatGLMForConditionalGeneration(build("chatglm_v1/main").config)
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight


@torch.no_grad()
def test_half_and_back_keeps_rotary_exact() -> None:
    """Nothing computed at construction is lost by a cast: half weights cast up give the same as casting the weights."""
    model = build("chatglm_v1/main").half().float()
    other = build("chatglm_v1/main")
    other.load_state_dict({k: v.half().float() for k, v in other.state_dict().items()})
    assert torch.equal(model(prompt()).logits, other(prompt()).logits)
