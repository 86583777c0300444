"""Quantized layers: casts keep the bytes, gradients flow, only needed rows of a table are unpacked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from chatglm import kernels
from chatglm.kernels.packing import dequantize
from chatglm.quantization.layer_swap import empty_linears, quantize_linears
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear


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


def test_walking_replaces_named_layers_only() -> None:
    network = nn.ModuleDict(
        {
            "dense": nn.Linear(4, 4),
            "other": nn.Linear(4, 4),
            "in": nn.ModuleDict({"dense": nn.Linear(4, 2, bias=False)}),
        }
    )
    empty = nn.ModuleDict(
        {
            "dense": nn.Linear(4, 4),
            "other": nn.Linear(4, 4),
            "in": nn.ModuleDict({"dense": nn.Linear(4, 2, bias=False)}),
        }
    )
    quantize_linears(network, ["dense"], 8)
    empty_linears(empty, ["dense"], 8)
    for root in (network, empty):
        assert isinstance(root["dense"], QuantizedLinear)
        assert isinstance(root["other"], nn.Linear)
        assert root["in"]["dense"].bias is None
    empty.load_state_dict(network.state_dict())
    assert torch.equal(empty["dense"](torch.ones(1, 4)), network["dense"](torch.ones(1, 4)))
