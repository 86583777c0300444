"""The invented family by itself: its network against the formulas written out, its tokenizer, its template."""

from __future__ import annotations

import cmath
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatglm.errors import InvalidRequestError, PromptTooLongError
from chatglm.generation.detokenizer import join_surfaces
from chatglm.messages import Message
from tests.families.glimmer.config import GlimmerNetworkConfig
from tests.families.glimmer.model import GlimmerConfig, GlimmerForConditionalGeneration
from tests.families.glimmer.network import GlimmerNetwork
from tests.families.glimmer.template import encode_chat
from tests.families.glimmer.tokenizer import GlimmerTextTokenizer, learn_pieces

TOKENIZER = GlimmerTextTokenizer(learn_pieces(["hello world", "你好，世界"] * 3, 280))


def normalized(x: list[float], weight: Tensor) -> Tensor:
    scale = math.sqrt(sum(value * value for value in x) / len(x) + 1e-5)
    return torch.tensor([value / scale for value in x]) * weight


def rotated(head: Tensor, position: int) -> Tensor:
    width = len(head) // 2
    turned = head.clone()
    for i in range(0, width, 2):
        pair = complex(head[i], head[i + 1]) * cmath.exp(1j * position / 10000 ** (i / width))
        turned[i], turned[i + 1] = pair.real, pair.imag
    return turned


def attention(qkv: list[Tensor], config: GlimmerNetworkConfig) -> list[Tensor]:
    """Outputs of all heads at every position, each computed by itself."""
    width, heads, groups = config.kv_channels, config.num_attention_heads, config.multi_query_group_num
    outputs = []
    for here, row in enumerate(qkv):
        mixed = []
        for head in range(heads):
            key_at = (heads + head * groups // heads) * width
            value_at = key_at + groups * width
            query = rotated(row[head * width : (head + 1) * width], here)
            seen = [rotated(qkv[there][key_at : key_at + width], there) for there in range(here + 1)]
            weights = torch.stack([query @ key for key in seen]).div(math.sqrt(width)).softmax(0)
            values = torch.stack([qkv[there][value_at : value_at + width] for there in range(here + 1)])
            mixed.append(weights @ values)
        outputs.append(torch.cat(mixed))
    return outputs


def written_out(ids: list[int], weights: dict[str, Tensor], config: GlimmerNetworkConfig) -> Tensor:
    """Logits [T, V] with one vector at a time and nothing shared with the network."""
    rows = [weights["transformer.embedding.word_embeddings.weight"][i] for i in ids]
    for number in range(config.num_layers):

        def named(name: str, start: str = f"transformer.encoder.layers.{number}.") -> Tensor:
            return weights[f"{start}{name}"]

        normed = [normalized(row.tolist(), named("input_layernorm.weight")) for row in rows]
        weight, bias = (named(f"self_attention.query_key_value.{leaf}") for leaf in ("weight", "bias"))
        mixed = attention([weight @ row + bias for row in normed], config)
        rows = [row + named("self_attention.dense.weight") @ out for row, out in zip(rows, mixed, strict=True)]
        for here, row in enumerate(rows):
            both = named("mlp.dense_h_to_4h.weight") @ normalized(
                row.tolist(), named("post_attention_layernorm.weight")
            )
            gate, up = both[: config.ffn_hidden_size], both[config.ffn_hidden_size :]
            rows[here] = row + named("mlp.dense_4h_to_h.weight") @ (gate / (1 + (-gate).exp()) * up)
    final = [normalized(row.tolist(), weights["transformer.encoder.final_layernorm.weight"]) for row in rows]
    return torch.stack([weights["transformer.output_layer.weight"] @ row for row in final])


@torch.no_grad()
def test_network_is_the_formulas_written_out() -> None:
    config = GlimmerNetworkConfig(num_layers=2)
    network = GlimmerNetwork(config)
    ids = torch.randint(1, config.padded_vocab_size, (2, 7))
    ids[1, :2] = config.pad_token_id
    logits = network(ids)
    assert torch.allclose(logits[0], written_out(ids[0].tolist(), network.state_dict(), config), atol=1e-5)
    assert torch.allclose(logits[1, 2:], written_out(ids[1, 2:].tolist(), network.state_dict(), config), atol=1e-5)


@given(st.text())
def test_text_survives(text: str) -> None:
    ids = TOKENIZER.encode_plain(text)
    assert TOKENIZER.decode(ids) == text
    assert join_surfaces(map(TOKENIZER.surface, ids), TOKENIZER.leading_spaces) == text
    assert all(i < len(TOKENIZER.pieces) for i in ids)


def test_prompt() -> None:
    messages = [Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    prompt = encode_chat(TOKENIZER, messages, 100)
    assert prompt.dropped_rounds == 0
    assert TOKENIZER.decode(prompt.input_ids) == "\ns\na\nb\nc"
    assert prompt.input_ids[-1] == TOKENIZER.special_id("<|assistant|>")
    shorter = encode_chat(TOKENIZER, messages, len(prompt.input_ids))
    assert (shorter.dropped_rounds, TOKENIZER.decode(shorter.input_ids)) == (1, "\ns\nc")


def test_what_is_no_prompt() -> None:
    with pytest.raises(InvalidRequestError):
        encode_chat(TOKENIZER, [Message("assistant", "b")], 100)
    with pytest.raises(PromptTooLongError):
        encode_chat(TOKENIZER, [Message("user", "x" * 100)], 50)


def test_the_class_for_transformers(tmp_path: Path) -> None:
    config = GlimmerConfig(num_layers=2, eos_token_id=[5, 6])
    model = GlimmerForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    again = GlimmerForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.config.eos_token_id == [5, 6]
    ids = torch.randint(1, 60, (1, 6))
    output = again(ids, labels=ids)
    assert torch.equal(output.logits, model(ids).logits)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
