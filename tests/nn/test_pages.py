"""Prompts in pages: what `PackedPrompts` computes and a `KVCache` holds, whatever lies beside; nothing else changes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatglm.nn import pages as pages_file
from chatglm.nn.attention import attend
from chatglm.nn.kv_cache import KVCache
from chatglm.nn.packed import PackedPrompts
from chatglm.nn.pages import PAGE_TOKENS, PagedPrompt, PagedPrompts, Pages, places
from chatglm.nn.rotary import head_tables, rows_at, tables_to

NOBODYS_PAGE = 0

HEADS, WIDTH, LAYERS = 3, 8, 2
# More than one page, so that a prompt behind it begins within a page.
PREFIX = PAGE_TOKENS + 3
NUM_PAGES = 40
LAYER = 1
UNTOUCHED = 7.0


def numbers(num_positions: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values [1, H, T, D], laid out as the heads of a network's product: position by position."""
    generator = torch.Generator().manual_seed(seed)
    product = torch.randn(1, num_positions, HEADS, 3 * WIDTH, generator=generator)
    query, key, value = product.transpose(1, 2).chunk(3, dim=-1)
    return query, key, value


def untouched_pages(dtype: torch.dtype = torch.float32) -> Pages:
    pages = Pages.empty(LAYERS, NUM_PAGES, HEADS, WIDTH, torch.zeros(2, 1, WIDTH), dtype)
    for store in (*pages.keys, *pages.values):
        store.fill_(UNTOUCHED)
    return pages


def paged(asked: list[tuple[int, bool]], seed: int) -> list[PagedPrompt]:
    """Prompts of so many positions, with or without a prefix before them, each with pages of its own in any order."""
    free = random.Random(seed).sample(range(1, NUM_PAGES + 1), NUM_PAGES)
    prompts = []
    for length, has_prefix in asked:
        num_before = PREFIX * has_prefix
        table = [free.pop() for _ in range(-(-(num_before + length) // PAGE_TOKENS))]
        prompts.append(PagedPrompt(torch.tensor(table, dtype=torch.int32), length, num_before))
    return prompts


# Few lengths, so that equal ones are often neighbours, and long ones that take several pages.
asked_of = st.lists(
    st.tuples(st.sampled_from([1, 2, 5, 64, 70]), st.booleans()), min_size=1, max_size=7
) | st.lists(st.tuples(st.integers(1, 140), st.booleans()), min_size=1, max_size=5)  # fmt: skip


@given(asked_of, st.sampled_from([torch.float32, torch.float16]), st.integers(0, 2), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_prompts_in_pages_are_those_in_caches(
    asked: list[tuple[int, bool]], dtype: torch.dtype, num_behind: int, seed: int
) -> None:
    """Mixed or equal lengths, some with the prefix. Stores of half precision keep what caches of it keep."""
    prompts, pages = paged(asked, seed), untouched_pages(dtype)
    _, *prefix = numbers(PREFIX, seed + 1)
    num_used = sum(length for length, _ in asked)
    query, key, value = numbers(num_used + num_behind, seed + 2)
    mixed = PagedPrompts(pages, prompts, [(prefix[0], prefix[1])] * LAYERS).attend(query, key, value, LAYER)

    caches, full = [KVCache(LAYERS, 1, dtype) for _ in asked], [KVCache(LAYERS, 1) for _ in asked]
    for cache, (_, has_prefix) in zip(full, asked, strict=True):
        if has_prefix:
            cache.append(prefix[0], prefix[1], LAYER)
    # Prompts attend to what they have just computed, before it is rounded.
    expected = PackedPrompts(full, [length for length, _ in asked]).attend(query, key, value, LAYER)
    torch.testing.assert_close(mixed, expected)
    assert mixed.shape == query.shape
    assert not mixed[:, :, num_used:].any()

    owned = torch.zeros(NUM_PAGES + 1, PAGE_TOKENS, dtype=torch.bool)
    start = 0
    for cache, prompt in zip(caches, prompts, strict=True):
        part = slice(start, start := start + prompt.length)
        cache.append(key[:, :, part], value[:, :, part], LAYER)
        page_T, place_T = places(prompt.table, prompt.num_before, prompt.num_before + prompt.length)
        owned[page_T, place_T] = True
        for store, cached in zip((pages.keys[LAYER], pages.values[LAYER]), cache.layer(LAYER), strict=True):
            assert torch.equal(store[page_T, :, place_T].transpose(0, 1), cached[0])
    assert int(owned.sum()) == num_used
    for store in (pages.keys[LAYER], pages.values[LAYER]):
        assert (store.transpose(1, 2)[~owned] == UNTOUCHED).all()
    for store in (pages.keys[0], pages.values[0]):
        assert (store == UNTOUCHED).all()


def test_equal_neighbours_attend_in_one_call_and_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a prefix has to be put in front of keys and values."""
    query, key, value = numbers(3 * 4 + 4 + 2, 5)
    calls: list[tuple[Tensor, ...]] = []

    def noting(*parts: Any) -> Tensor:
        calls.append(parts[:3])
        return attend(*parts)

    monkeypatch.setattr(pages_file, "attend", noting)
    asked = [(4, False)] * 3 + [(4, True), (2, False)]
    prefix = [numbers(PREFIX, 6)[1:]] * LAYERS
    PagedPrompts(untouched_pages(), paged(asked, 0), prefix).attend(query, key, value, LAYER)
    storages = [part.untyped_storage().data_ptr() for part in (query, key, value)]
    assert [part[0].shape[0] for part in calls] == [3, 1, 1]
    for number, parts in enumerate(calls):
        are_views = [p.untyped_storage().data_ptr() == s for p, s in zip(parts, storages, strict=True)]
        assert are_views == ([True, False, False] if number == 1 else [True] * 3)


def test_a_store_takes_the_same_for_several() -> None:
    """A prefix, put before everyone who begins with it in one call."""
    tables = [torch.tensor(table, dtype=torch.int32) for table in ([3, 9], [4, 1], [2, 8])]
    where = [torch.stack(parts) for parts in zip(*(places(table, 0, PREFIX) for table in tables), strict=True)]
    together, each = untouched_pages(), untouched_pages()
    _, key, value = numbers(PREFIX, 4)
    together.store(key[0], value[0], LAYER, where[0], where[1])
    for table in tables:
        each.store(key[0], value[0], LAYER, *places(table, 0, PREFIX))
    for ours, expected in zip(together.keys + together.values, each.keys + each.values, strict=True):
        assert torch.equal(ours, expected)
    assert (together.keys[LAYER][NOBODYS_PAGE] == UNTOUCHED).all()


@given(st.lists(st.lists(st.integers(0, 2049), min_size=2, max_size=2), min_size=1, max_size=9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_a_step_turns_by_is_looked_up_to_the_bit(positions: list[list[int]], is_2d: bool) -> None:
    head_width, num_rows = 64, 1 + is_2d
    positions_BP = torch.tensor(positions)[:, :num_rows]
    tables = tables_to(2050, head_width // num_rows, torch.device("cpu"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        computed = head_tables(positions_BP[..., None] if is_2d else positions_BP, head_width, dtype)
        for ours, expected in zip(rows_at(tables, positions_BP, dtype), computed, strict=True):
            assert ours.dtype is dtype
            assert ours.is_contiguous()
            assert torch.equal(ours, expected[:, 0, 0])


def test_a_position_behind_the_tables_is_the_last() -> None:
    tables = tables_to(5, 4, torch.device("cpu"))
    for late, last in zip(*(rows_at(tables, torch.tensor([[n, 1]]), torch.float32) for n in (99, 4)), strict=True):
        assert torch.equal(late, last)
