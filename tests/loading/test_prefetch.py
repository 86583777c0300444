"""ReadAhead: whatever is taken in whatever order is there, stays while it is used, and everything ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.errors import ChatGLMError
from chatglm.loading.prefetch import ReadAhead

PATIENCE_S = 30


class Shelf:
    """Slots that remember what was read into them, and how often each item was."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[int | None] = [None] * num_slots
        self.reads: list[int] = []
        self.has_read = threading.Event()
        self.broken: int | None = None

    def read(self, item: int, slot: int) -> None:
        self.slots[slot] = None
        self.reads.append(item)
        self.has_read.set()
        if item == self.broken:
            raise OSError(f"item {item} cannot be read")
        self.slots[slot] = item


@pytest.fixture
def made() -> Iterator[list[ReadAhead]]:
    """Whatever is put here is closed."""
    things: list[ReadAhead] = []
    yield things
    for thing in things:
        thing.close()


@given(
    num_items=st.integers(1, 6), num_slots=st.integers(1, 3), order=st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
@settings(max_examples=60, deadline=None)
def test_any_order(num_items: int, num_slots: int, order: list[int]) -> None:
    shelf = Shelf(num_slots)
    ahead = ReadAhead(shelf.read, num_items, num_slots)
    try:
        for item in (number % num_items for number in order):
            with ahead.taken(item) as slot:
                assert shelf.slots[slot] == item
    finally:
        ahead.close()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_in_order_nothing_is_read_in_vain(num_slots: int, made: list[ReadAhead]) -> None:
    shelf = Shelf(num_slots)
    made.append(ahead := ReadAhead(shelf.read, 4, num_slots))
    for item in [0, 1, 2, 3] * 5:
        with ahead.taken(item) as slot:
            assert shelf.slots[slot] == item
    ahead.close()
    assert shelf.reads[:20] == [0, 1, 2, 3] * 5
    assert len(shelf.reads) <= 20 + num_slots


def test_the_next_is_read_while_one_is_in_use(made: list[ReadAhead]) -> None:
    shelf = Shelf(2)
    made.append(ahead := ReadAhead(shelf.read, 3, 2))
    with ahead.taken(0) as slot:
        while 1 not in shelf.slots:
            assert shelf.has_read.wait(PATIENCE_S)
            shelf.has_read.clear()
        assert shelf.slots[slot] == 0


def test_threads_take_turns(made: list[ReadAhead]) -> None:
    shelf = Shelf(2)
    made.append(ahead := ReadAhead(shelf.read, 5, 2))

    def passes(start: int) -> bool:
        held = []
        for item in [*range(start, 5), *range(5)] * 4:
            with ahead.taken(item) as slot:
                held.append(shelf.slots[slot] == item)
        return all(held)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(passes, range(4)))


def test_an_error_goes_to_who_takes_next_and_then_it_goes_on(made: list[ReadAhead]) -> None:
    shelf = Shelf(2)
    shelf.broken = 2
    made.append(ahead := ReadAhead(shelf.read, 4, 2))
    for _ in range(3):
        with pytest.raises(OSError, match="item 2"):
            for item in range(4):
                with ahead.taken(item) as slot:
                    assert shelf.slots[slot] == item
    shelf.broken = None
    seen = []
    for item in [0, 1, 2, 3, 0, 1, 2, 3]:
        try:
            with ahead.taken(item) as slot:
                seen.append(shelf.slots[slot] == item)
        except OSError:  # read ahead before it was mended
            pass
    assert len(seen) >= 7
    assert all(seen)


def test_an_error_of_the_user_gives_the_slot_back(made: list[ReadAhead]) -> None:
    shelf = Shelf(1)
    made.append(ahead := ReadAhead(shelf.read, 2, 1))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), ahead.taken(0):
            raise KeyboardInterrupt
    with ahead.taken(1) as slot:
        assert shelf.slots[slot] == 1


def test_closing_ends_the_thread_and_those_who_wait() -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    def read(item: int, slot: int) -> None:
        is_reading.set()
        assert may_end.wait(PATIENCE_S)

    def wait() -> None:
        with pytest.raises(ChatGLMError, match="closed"), ahead.taken(0):
            pass

    ahead = ReadAhead(read, 2, 1)
    waiter = threading.Thread(target=wait)
    waiter.start()
    assert is_reading.wait(PATIENCE_S)
    closer = threading.Thread(target=ahead.close)
    closer.start()
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    may_end.set()
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    assert not any(thread.name == "chatglm-read-ahead" and thread.is_alive() for thread in threading.enumerate())
    ahead.close()
    with pytest.raises(ChatGLMError, match="closed"), ahead.taken(1):
        pass
