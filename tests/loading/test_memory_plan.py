"""Plans under a limit: kept to, as generous as can be, and refused with a figure that works."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatglm import kernels
from chatglm.errors import DeviceError, InvalidRequestError, OutOfMemoryError
from chatglm.loading import examine, load
from chatglm.loading import memory_plan as limits
from chatglm.loading.memory_estimate import check_memory_options
from chatglm.loading.memory_plan import RESERVED_BYTES, BlockSizes, make_plan, plan_blocks, spread
from tests.folders import make_folder
from tests.loading.folders import quantized_folder

blocks_of_all_sizes = st.lists(
    st.builds(BlockSizes, weights=st.integers(1, 100), stored=st.integers(1, 100), working=st.integers(0, 20)),
    min_size=1,
    max_size=8,
).map(lambda sizes: {f"block{i}": size for i, size in enumerate(sizes)})


@given(limit=st.integers(0, 1200), outside=st.integers(0, 200), blocks=blocks_of_all_sizes)
def test_a_plan_keeps_to_the_limit(limit: int, outside: int, blocks: dict[str, BlockSizes]) -> None:
    plan = make_plan(limit, outside, blocks)
    least = outside + max(block.weights for block in blocks.values())
    least += max(block.working for block in blocks.values())
    assert (plan is None) == (limit < least)
    if plan is None:
        return
    assert outside <= plan.weights_bytes <= limit
    assert list(plan.streamed) == [name for name in blocks if name in plan.streamed]
    assert plan.bytes_per_pass == sum(blocks[name].stored for name in plan.streamed)
    assert plan.num_slots in (1, 2)


@given(
    limit=st.integers(0, 1200),
    outside=st.integers(0, 200),
    size=st.builds(BlockSizes, weights=st.integers(1, 100), stored=st.just(7), working=st.integers(0, 20)),
    count=st.integers(1, 10),
)
def test_a_plan_keeps_as_many_equal_blocks_as_fit(limit: int, outside: int, size: BlockSizes, count: int) -> None:
    blocks = {f"block{i}": size for i in range(count)}
    plan = make_plan(limit, outside, blocks)
    whole = size.weights + size.working
    if limit >= outside + count * whole:
        assert plan is not None
        assert plan.streamed == ()
    elif limit < outside + whole:
        assert plan is None
    else:
        assert plan is not None
        num_kept = count - len(plan.streamed)
        with_two_buffers = outside + 2 * size.weights + size.working
        assert num_kept == max(0, (limit - with_two_buffers) // whole)
        assert plan.num_slots == (2 if limit >= with_two_buffers else 1)


@given(count=st.integers(0, 40), total=st.integers(1, 40))
def test_numbers_are_spread_evenly(count: int, total: int) -> None:
    count = min(count, total)
    numbers = spread(count, total)
    assert len(numbers) == count
    gaps = {b - a for a, b in pairwise(numbers)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert all(0 <= number < total for number in numbers)


def plan_of(folder: Path, limit: int, dtype: torch.dtype = torch.float32) -> limits.Plan:
    report = examine(folder)
    assert report.family is not None
    return plan_blocks(report.family.empty_network(report.config), folder, report.tensors, dtype, limit)


@pytest.mark.parametrize(("bits", "dtype"), [(0, "fp32"), (0, "bf16"), (4, "fp32"), (8, "bf16")])
def test_too_little_is_refused_with_the_figure_that_works(bits: int, dtype: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "plain", num_layers=5, hidden_size=64)
    folder = quantized_folder(tmp_path / "packed", bits, num_layers=5, hidden_size=64) if bits else tmp_path / "plain"
    with pytest.raises(OutOfMemoryError, match="1 MB is too little for") as raised:
        load(folder, device="cpu", dtype=dtype, max_memory="1M")
    needed = re.search(r"Give --max-memory (\d+M) or more", str(raised.value))
    assert needed is not None
    load(folder, device="cpu", dtype=dtype, max_memory=needed[1]).close()


def test_types_count_as_they_are_in_memory(tmp_path: Path) -> None:
    """Stored as half: as float32 the same limit holds half as many layers."""
    make_folder(tmp_path, num_layers=8, hidden_size=64, inner_hidden_size=256)
    limit = RESERVED_BYTES + 800_000
    kept = {dtype: 8 - len(plan_of(tmp_path, limit, dtype).streamed) for dtype in (torch.float32, torch.bfloat16)}
    assert 0 < kept[torch.float32] < kept[torch.bfloat16] < 8


def test_a_head_of_its_own_counts(tmp_path: Path) -> None:
    make_folder(tmp_path / "one", num_layers=2)
    make_folder(tmp_path / "two", num_layers=2, tied=False)
    sizes = [plan_of(tmp_path / name, 10**9).weights_bytes for name in ("one", "two")]
    vocab_size, hidden_size = 432, 32
    assert sizes[1] - sizes[0] == pytest.approx(4 * vocab_size * hidden_size, rel=0.1)


def test_a_plan_with_everything_streams_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path)
    said: list[str] = []
    loaded = load(tmp_path, device="cpu", max_memory="1G", report=said.append)
    assert not any("layers" in sentence for sentence in said)
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())
    assert loaded.model.state_dict()


def test_the_packing_of_torchs_operator_counts(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, 4, num_layers=3, hidden_size=64)
    with kernels.use("reference"):
        plain = plan_of(folder, 10**9).weights_bytes
    with kernels.use("torch"):
        doubled = plan_of(folder, 10**9).weights_bytes
    packed = sum(t.size_bytes for t in examine(folder).tensors.values() if t.dtype == torch.int8)
    assert doubled - plain == packed


# --- refusals ---


def test_quantizing_in_every_pass_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"python -m chatglm quantize .* --bits 8"):
        load(tmp_path, device="cpu", quantize=8, max_memory="1G")


def test_quantize_says_nothing_new_of_a_quantized_folder(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path, 8)
    load(folder, device="cpu", quantize=8, max_memory="1G").close()


def test_a_file_that_only_torch_can_read(tmp_path: Path) -> None:
    make_folder(tmp_path, "bin_old", num_layers=8, hidden_size=64)
    with pytest.raises(InvalidRequestError, match="python -m chatglm convert"):
        load(tmp_path, device="cpu", max_memory=RESERVED_BYTES + 800_000)


@pytest.mark.parametrize(("is_mapped", "limit", "flag"), [(True, None, "--mmap"), (False, 10**9, "--max-memory")])
def test_other_devices(is_mapped: bool, limit: int | None, flag: str) -> None:
    with pytest.raises(DeviceError, match=f"{flag} is for the CPU, but the model would run on cuda:0"):
        check_memory_options(torch.device("cuda:0"), is_mapped, limit)
    check_memory_options(torch.device("cuda:0"), False, None)
    check_memory_options(torch.device("cpu"), is_mapped, limit)


def test_both_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        load(tmp_path, device="cpu", mmap=True, max_memory="1G")


@pytest.mark.parametrize("size", ["much", 0, "-1G", "0M", ""])
def test_no_size(size: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="is no size"):
        load(tmp_path, device="cpu", max_memory=size)
