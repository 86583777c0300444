"""Attention: grouped heads; and on a card torch may use any kernel but cuDNN's, its switches afterwards as they were.

A card is only pretended: fake tensors know their device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from chatglm.nn.attention import attend

SWITCHES = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")


def switches() -> list[bool]:
    return [getattr(torch.backends.cuda, f"{name}_enabled")() for name in SWITCHES]


@pytest.fixture(params=[True, False])
def cudnn(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the process lets cuDNN attend; flash is off, as a user may have it."""
    before = switches()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    torch.backends.cuda.enable_flash_sdp(False)
    yield request.param
    for name, is_on in zip(SWITCHES, before, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}")(is_on)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """The switches at each call of torch's attention."""
    seen: list[list[bool]] = []
    attention = F.scaled_dot_product_attention

    def noting(*args: Any, **keys: Any) -> Any:
        seen.append(switches())
        return attention(*args, **keys)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    return seen


def attend_on(device: str) -> torch.Tensor:
    query = torch.empty(1, 2, 3, 8, device=device)
    return attend(query, query, query, None)


def test_cudnn_does_not_attend_on_a_card(cudnn: bool, seen: list[list[bool]]) -> None:
    before = switches()
    with FakeTensorMode():
        assert attend_on("cuda").device.type == "cuda"
    assert seen == [[*before[:3], False]]
    assert switches() == before


def test_a_card_that_fails_leaves_the_switches_as_they_were(cudnn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **keys: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(F, "scaled_dot_product_attention", fail)
    with FakeTensorMode(), pytest.raises(torch.OutOfMemoryError):
        attend_on("cuda")
    assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn


def test_threads_at_once_leave_the_switch_as_the_first_one_found_it(
    cudnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first is inside, and is the last one there."""
    is_inside, has_left = (threading.Barrier(2, timeout=30) for _ in range(2))
    seen: dict[str, bool] = {}

    def waiting(query: torch.Tensor, *args: Any, **keys: Any) -> torch.Tensor:
        is_inside.wait()
        if threading.current_thread() is second:
            has_left.wait()
            seen["the last one"] = torch.backends.cuda.cudnn_sdp_enabled()
        return query

    def run() -> None:
        with FakeTensorMode():
            attend_on("cuda")

    monkeypatch.setattr(F, "scaled_dot_product_attention", waiting)
    first, second = threading.Thread(target=run), threading.Thread(target=run)
    first.start()
    second.start()
    first.join(30)
    has_left.wait()
    second.join(30)
    assert seen == {"the last one": False}
    assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn


def test_without_a_card_no_switch_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delattr(torch.backends.cuda, f"enable_{name}")
    assert attend_on("cpu").shape == (1, 2, 3, 8)


@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("is_masked", [False, True])
def test_grouped_heads_are_neighbours_that_share_keys(num_new: int, is_masked: bool) -> None:
    query, stored = torch.randn(2, 6, num_new, 4), torch.randn(2, 2, 2, 9, 4)
    visible = None
    if is_masked:
        visible = torch.rand(2, 1, num_new, 9) > 0.4
        visible[..., 0] = True
    mixed = attend(query, *stored, visible)
    for head in range(6):
        for row in range(2):
            key, value = stored[:, row, head // 3]
            scores = query[row, head] @ key.T / 2
            if visible is not None:
                scores = scores.masked_fill(~visible[row, 0], -torch.inf)
            torch.testing.assert_close(mixed[row, head], scores.softmax(-1) @ value, rtol=1e-5, atol=1e-6)
