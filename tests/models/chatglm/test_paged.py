"""Parts of what the network offers to the runner of a GPU; whole answers are compared in `tests/engine`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from chatglm.engine.decoder import BatchDecoder
from chatglm.models.chatglm.paged import _activated
from chatglm.nn.pages import PAGE_TOKENS, Pages
from tests.engine.test_exactness import network
from tests.pretended_gpus import Pretended
from tests.pretended_gpus import pretending as pretending  # a fixture


def fill(model: Any, lengths: list[int], uses_adapter: list[bool]) -> tuple[Pages, list[torch.Tensor]]:
    """Prompts of so many ids, all the same as far as they go, each in two pages of its own."""
    config, pages = model.config, model.paged_decoder().new_pages(2 * len(lengths))
    end = [config.gmask_token_id, config.bos_token_id]
    first = config.pad_token_id + 1
    prompts = [torch.tensor([[*range(first, first + length), *end]]) for length in lengths]
    tables = [torch.tensor([2 * n + 1, 2 * n + 2], dtype=torch.int32) for n in range(len(lengths))]
    with torch.inference_mode():
        model.paged_decoder().fill_pages(
            prompts, [BatchDecoder(model).prompt_layout(ids) for ids in prompts], pages, tables, uses_adapter
        )
    return pages, tables


@pytest.mark.parametrize(("uses_adapter", "num_calls"), [([False] * 3, 0), ([True, False, True], 1)])
def test_a_prefix_is_computed_for_those_who_use_it(uses_adapter: list[bool], num_calls: int) -> None:
    model, calls = network("prefix_projection"), []
    assert model.transformer.prefix_encoder is not None
    handle = model.transformer.prefix_encoder.register_forward_hook(lambda *args: calls.append(args))
    try:
        fill(model, [3, 5, 3], uses_adapter)
    finally:
        handle.remove()
    assert len(calls) == num_calls


def test_prompts_in_any_order_fill_their_own_pages() -> None:
    """Equal ones are taken together, wherever they stand."""
    model, lengths, uses = network("prefix_embedding"), [9, 4, 9, 4, 4, 1], [True, False, False, False, True, True]
    together, tables = fill(model, lengths, uses)
    for length, one_uses, table in zip(lengths, uses, tables, strict=True):
        alone, own = fill(model, [length], [one_uses])
        num_stored = (model.config.pre_seq_len or 0) * one_uses + length + 1
        assert num_stored <= PAGE_TOKENS
        for ours, expected in zip(together.keys + together.values, alone.keys + alone.values, strict=True):
            assert expected[own[0][0]][:, :num_stored].any()
            torch.testing.assert_close(ours[table.long()], expected[own[0].long()])


@pytest.mark.parametrize("has_operator", [True, False])
def test_torchs_own_operator_is_for_cards_only(
    has_operator: bool, monkeypatch: pytest.MonkeyPatch, pretending: None
) -> None:
    """Elsewhere its GELU is another one; a torch without it does in two steps what it does in one."""
    calls: list[torch.device] = []
    operator = torch._addmm_activation

    def noting(bias: torch.Tensor, *args: Any, **keys: Any) -> torch.Tensor:
        calls.append(bias.device)
        return operator(bias, *args, **keys)

    if has_operator:
        monkeypatch.setattr(torch, "_addmm_activation", noting)
    else:
        monkeypatch.delattr(torch, "_addmm_activation")
    on_card = Pretended(1, 0).network.transformer.layers[0].mlp
    x = torch.empty(3, on_card.dense_h_to_4h.in_features, device="cuda:0")
    assert _activated(on_card, x).shape == (3, on_card.dense_h_to_4h.out_features)
    assert calls == [torch.device("cuda:0")] * has_operator


def test_without_a_card_the_plain_product_is_taken() -> None:
    mlp = network("main").transformer.layers[0].mlp
    x = 3 * torch.randn(4, mlp.dense_h_to_4h.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(_activated(mlp, x), mlp.activated(x))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 2, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_cards_gelu_is_the_tanh_form(num_rows: int, dtype: torch.dtype) -> None:
    """Between -3 and -2.5 the two forms are 4e-4 apart, and half precision is finer than that."""
    if not torch.cuda.is_available():
        pytest.skip("There is no NVIDIA card.")
    bias = torch.linspace(-3.0, -2.5, 256, device="cuda", dtype=dtype)
    weight, x = (0.01 * torch.randn(n, 64, device="cuda", dtype=dtype) for n in (256, num_rows))
    with torch.inference_mode():
        ours = torch._addmm_activation(bias, x, weight.t(), use_gelu=True).double()
        exact = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(ours, F.gelu(exact, approximate="tanh"), atol=1.5e-4, rtol=0)
    assert ((ours - F.gelu(exact)).abs() > 1.5e-4).all()
