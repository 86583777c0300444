"""Quantized layers: casts keep the bytes, gradients flow, only needed rows of a table are unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from chatglm import kernels
from chatglm.kernels.packing import dequantize
from chatglm.model_spec import LinearSpec
from chatglm.quantization.layer_swap import check_packed, make_room, quantize_network
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear
from tests.scripted import tiny_spec


@pytest.fixture(autouse=True)
def _reference_kernel() -> Iterator[None]:
    with kernels.use("reference"):
        yield


def layer(bits: int, group_size: int = 0) -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear.of(nn.Linear(64, 6), bits, group_size)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_casts_keep_the_bytes_and_change_the_arithmetic(bits: int, group_size: int, dtype: torch.dtype) -> None:
    quantized = layer(bits, group_size)
    packed = quantized.weight.clone()
    x = torch.randn(2, 3, 64)
    reference = quantized(x)
    cast = quantized.to(dtype)
    assert torch.equal(cast.weight, packed)
    row_type = torch.float32 if dtype == torch.bfloat16 else dtype
    assert cast.weight_scale.dtype == (torch.float16 if group_size else row_type)
    assert cast.dtype == dtype
    result = cast(x.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), reference, atol=0.03, rtol=0.03)
    assert torch.equal(cast.float().weight, packed)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 64])
def test_gradients_reach_the_input_and_the_bias_but_not_the_weight(bits: int, group_size: int) -> None:
    quantized = layer(bits, group_size)
    x = torch.randn(5, 64, requires_grad=True)
    quantized(x).square().sum().backward()
    weight = dequantize(quantized.weight, quantized.weight_scale, bits, torch.float32)
    x2 = x.detach().clone().requires_grad_()
    nn.functional.linear(x2, weight, quantized.bias.detach()).square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    assert quantized.bias.grad is not None
    assert quantized.weight.grad is None


def test_a_bias_learns_where_inputs_need_no_gradient() -> None:
    quantized = layer(4)
    quantized(torch.randn(5, 64)).sum().backward()
    assert torch.equal(quantized.bias.grad, torch.full((6,), 5.0))
    with torch.no_grad():
        assert not quantized(torch.randn(5, 64)).requires_grad


@pytest.mark.parametrize("group_size", [0, 32])
def test_state_dict_round_trip(group_size: int) -> None:
    first, second = layer(4, group_size), QuantizedLinear(64, 6, 4, group_size=group_size)
    second.load_state_dict(first.state_dict())
    assert list(first.state_dict()) == ["weight", "weight_scale", "bias"]
    x = torch.randn(3, 64)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_rows(bits: int, dtype: torch.dtype) -> None:
    table = nn.Embedding(10, 8)
    quantized = QuantizedEmbedding(10, 8, bits)
    quantized.load_float(table.weight.data)
    quantized = quantized.to(dtype)
    ids = torch.tensor([[3, 9, 3]])
    whole = dequantize(quantized.weight, quantized.weight_scale, bits, dtype)
    assert torch.equal(quantized(ids), whole[ids])
    assert quantized(ids).dtype == dtype


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"dense": nn.Linear(4, 2, bias=False)})


class Network(nn.Module):
    """Two blocks, of which the spec names two layers each."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        linears = (LinearSpec("dense", 4, (("all", 4),)), LinearSpec("inner.dense", 4, (("all", 2),)))
        self.spec = tiny_spec(10, 10, layers="blocks", linears=linears, num_layers=2)
        self.config = SimpleNamespace(quantization_bit=bits, quantization_group_size=0, quantization_embedding_bit=0)
        self.blocks = nn.ModuleList([Block(), Block()])


def test_swapping_replaces_the_layers_of_the_spec_only() -> None:
    network, empty = Network(8), Network(8)
    quantize_network(network)
    make_room(empty)
    for root in (network, empty):
        check_packed(root)
        for block in root.blocks:
            assert isinstance(block.dense, QuantizedLinear)
            assert isinstance(block.other, nn.Linear)
            assert block.inner["dense"].bias is None
    empty.load_state_dict(network.state_dict())
    x = torch.ones(1, 4)
    assert torch.equal(empty.blocks[1].dense(x), network.blocks[1].dense(x))


def test_a_layer_that_does_not_exist_or_is_not_packed_is_noticed() -> None:
    network = Network(8)
    with pytest.raises(AssertionError, match=r"blocks\.0\.dense"):
        check_packed(network)
    network.spec = replace(network.spec, linears=(LinearSpec("absent", 4, (("all", 4),)),))
    with pytest.raises(AttributeError, match="absent"):
        make_room(network)
