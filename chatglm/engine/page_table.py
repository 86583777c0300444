"""Which pages of a store belong to which request.

Knows: page numbers. Does not know tensors, or how many pages a request may have (blocks.py reserves as many before).
"""

from __future__ import annotations

from typing import Any


class PageTable:
    """Pages 1..n of a store; page 0 belongs to nobody."""

    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages, 0, -1))
        self._owned: dict[Any, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody has."""
        return len(self._free)

    def take(self, owner: Any, num_pages: int) -> list[int]:
        """So many pages for an owner that has none."""
        assert owner not in self._owned, "an owner takes pages once"
        assert num_pages <= len(self._free), "more pages were promised than there are"
        self._owned[owner] = [self._free.pop() for _ in range(num_pages)]
        return self._owned[owner]

    def release(self, owner: Any) -> None:
        """Give back what an owner has."""
        self._free += reversed(self._owned.pop(owner))
