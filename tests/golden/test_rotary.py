"""Rotary tables and the rotation at the real sizes (head width 128)."""

from __future__ import annotations

import pytest
import torch

from chatglm.nn.rotary import head_tables, inverse_frequencies, rotary_tables, rotate
from tests.golden.cases import assert_close, tensors

GOLDEN = tensors("rotary", "rotary_real_sizes")


@pytest.mark.parametrize(("name", "width"), [("v1", 64), ("v1_1d", 128)])
def test_tables(name: str, width: int) -> None:
    assert torch.equal(inverse_frequencies(width), GOLDEN[f"{name}.fp32.inv_freq"])
    cos, sin = rotary_tables(GOLDEN["v1_positions"][None], width, torch.float32)
    assert_close(cos[0, 0], GOLDEN[f"{name}.fp32.cos"])
    assert_close(sin[0, 0], GOLDEN[f"{name}.fp32.sin"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_tables_are_the_rounded_float32_ones(dtype: torch.dtype) -> None:
    """The original computes positions and angles in the model's dtype; ours are at least as close to the truth."""
    name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    for ours, kind in zip(rotary_tables(GOLDEN["v1_positions"][None], 64, dtype), ("cos", "sin"), strict=True):
        true = GOLDEN[f"v1.fp32.{kind}"]
        assert torch.equal(ours[0, 0], true.to(dtype))
        assert (ours[0, 0].float() - true).abs().max() <= (GOLDEN[f"v1.{name}.{kind}"].float() - true).abs().max()


def test_rotation() -> None:
    """Golden: [T, B, H, 64] and positions [T, B]; one part of the head."""
    tables = rotary_tables(GOLDEN["apply_v1.position_ids"].T, 64, torch.float32)
    for name in ("q", "k"):
        turned = rotate(GOLDEN[f"apply_v1.{name}"].permute(1, 2, 0, 3), tables, parts=1)
        assert_close(turned.permute(2, 0, 1, 3), GOLDEN[f"apply_v1.{name}_out"])


def test_two_parts_are_two_rotations() -> None:
    x = torch.randn(2, 3, 5, 16)
    positions = torch.randint(0, 50, (2, 2, 5))
    whole = rotate(x, head_tables(positions, 16, torch.float32), parts=2)
    halves = [
        rotate(x[..., 8 * i : 8 * i + 8], rotary_tables(positions[:, i], 8, torch.float32), parts=1) for i in range(2)
    ]
    assert torch.equal(whole, torch.cat(halves, dim=-1))
