"""Numbers of bytes: read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm.errors import InvalidRequestError
from chatglm.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (2_000_000_000, 2 * 10**9),
        ("2G", 2 * 10**9),
        ("2g", 2 * 10**9),
        (" 1.5 GB ", 1_500_000_000),
        ("200M", 200_000_000),
        ("3kB", 3000),
        ("7", 7),
        ("7B", 7),
        ("1T", 10**12),
        ("2GiB", 2 * 2**30),
        ("512MiB", 512 * 2**20),
    ],
)
def test_sizes_as_people_write_them(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "much", "-2G", "2 apples", "1e9", "2iB", "0", 0, "0.1", "1.2.3G", "２Ｇ"])
def test_no_sizes(text: int | str) -> None:
    with pytest.raises(InvalidRequestError, match="Give one like 2G"):
        parse_bytes(text)


@given(st.integers(1, 10**14))
def test_what_is_written_can_be_read(size: int) -> None:
    text = format_bytes(size).replace(" bytes", "").replace(" ", "")
    assert parse_bytes(text) == pytest.approx(size, rel=0.5)
