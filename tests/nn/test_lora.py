"""Which rows get a low-rank update: rows beside each other, threads beside each other."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chatglm.errors import InvalidRequestError
from chatglm.loading.placement import apply_placement
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.lora import LowRankLinear, merged_state, rows_using, updates_for
from chatglm.quantization.layers import QuantizedLinear
from tests.lora import attach_lora, random_update
from tests.pretended_gpus import Pretended
from tests.pretended_gpus import pretending as pretending  # a fixture

CPU = torch.device("cpu")


def layer(dtype: torch.dtype = torch.float32) -> LowRankLinear:
    generator = torch.Generator().manual_seed(1)
    base = nn.Linear(32, 48)
    return LowRankLinear(base, *(torch.randn(*shape, generator=generator) for shape in ((3, 32), (48, 3)))).to(dtype)


def rows_of(num_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, num_rows, 32, generator=torch.Generator().manual_seed(2)).to(dtype)


@given(flags=st.lists(st.booleans(), min_size=1, max_size=9), is_flag=st.booleans(), is_flat=st.booleans())
@settings(deadline=None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_rows_in_one_call(dtype: torch.dtype, flags: list[bool], is_flag: bool, is_flat: bool) -> None:
    """To the bit: a row is what it would be if all rows used the update, or none."""
    linear, x = layer(dtype), rows_of(len(flags), dtype)
    x = x[0] if is_flat else x
    with updates_for(torch.tensor(flags, dtype=None if is_flag else torch.float32)):
        mixed = linear(x)
    with updates_for(False):
        off = linear(x)
    assert mixed.dtype == dtype
    assert torch.equal(off, linear.base(x))
    assert torch.equal(mixed, torch.where(torch.tensor(flags)[:, None], linear(x), off))


@given(uses=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=5), spare=st.integers(0, 2))
def test_requests_become_rows(uses: list[tuple[bool, int]], spare: int) -> None:
    flags = [flag for flag, length in uses for _ in range(length)]
    rows = rows_using([flag for flag, _ in uses], [length for _, length in uses], len(flags) + spare, CPU)
    if isinstance(rows, Tensor):
        assert rows.tolist() == flags + [False] * spare
        assert len(set(flags)) == 2  # one value for all costs no tensor
    else:
        assert set(flags) == {rows is None}


def test_a_mask_is_read_by_no_one() -> None:
    """On the meta device there are no values to read, as in a captured graph."""
    linear = layer().to("meta")
    with updates_for(torch.ones(5, dtype=torch.bool, device="meta")):
        assert linear(torch.empty(1, 5, 32, device="meta")).shape == (1, 5, 48)


@torch.no_grad()
def test_threads_do_not_disturb_one_another() -> None:
    linear, x = layer(), rows_of(4)
    rows = {"all": None, "none": False, "some": torch.tensor([True, False, False, True])}
    expected, seen = {}, {}
    for name, some in rows.items():
        with updates_for(some):
            expected[name] = linear(x)
    together = threading.Barrier(len(rows))

    def call(name: str) -> None:
        with updates_for(rows[name]):
            together.wait(20)  # all are inside
            seen[name] = linear(x)
            together.wait(20)

    threads = [threading.Thread(target=call, args=[name]) for name in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.keys() == rows.keys()
    assert all(torch.equal(seen[name], expected[name]) for name in rows)
    assert len({tuple(value.flatten().tolist()) for value in seen.values()}) == 3


@torch.no_grad()
def test_the_switch_goes_back_after_an_error() -> None:
    linear, x = layer(), rows_of(2)
    expected = linear(x)
    with pytest.raises(KeyError), updates_for(torch.tensor([True, False])), updates_for(False):
        raise KeyError
    assert torch.equal(linear(x), expected)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")  # accelerate looks for ties
@pytest.mark.parametrize("bits", [0, 4])
def test_rows_are_told_once_for_all_devices(bits: int, pretending: None) -> None:
    pretended = Pretended(3, bits)
    network = pretended.network
    attach_lora(network, random_update(network, 1.0))
    apply_placement(network, pretended.placement)
    ids = torch.empty((1, 5), dtype=torch.long, device=pretended.devices[0])
    positions = torch.empty((1, 2, 5), dtype=torch.long, device=pretended.devices[0])
    with updates_for(torch.empty(5, dtype=torch.bool, device=pretended.devices[0])):
        hidden = network.transformer(ids, positions, None, KVCache(network.config.num_layers))
    assert hidden.device == pretended.devices[0]


@torch.no_grad()
def test_one_weight_of_both() -> None:
    network = nn.Sequential(layer(), nn.Linear(48, 8))
    names = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 8)).state_dict().keys()
    state = merged_state(network)
    assert state is not None
    assert state.keys() == names
    whole = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 8))
    whole.load_state_dict(state)
    torch.testing.assert_close(whole(rows_of(3)), network(rows_of(3)), rtol=1e-5, atol=1e-5)
    assert merged_state(whole) is None
    packed = LowRankLinear(QuantizedLinear(32, 48, 8), torch.ones(1, 32), torch.ones(48, 1))
    with pytest.raises(InvalidRequestError, match="attached to packed weights"):
        merged_state(nn.Sequential(packed))
