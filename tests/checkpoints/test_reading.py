"""WeightReader and the memory it reads into: all ways to a value give the same, and a changed file is noticed."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from chatglm.checkpoints import WeightReader, convert_into, iter_tensors, list_file, list_tensors, new_tensor, reading
from chatglm.checkpoints.huge_pages import HUGE_PAGE_BYTES, SERIAL_ELEMENTS
from chatglm.errors import DamagedFileError
from tests.folders import LAYOUTS, Tensors, write_weights

PLAIN_LAYOUTS = [layout for layout in LAYOUTS if layout != "bin_old"]


@pytest.fixture
def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(50, 30, generator=generator).half(),
        "table": torch.randint(-128, 128, (7, 9), dtype=torch.int8, generator=generator),
        "bias": torch.randn(11, generator=generator),
        "brain": torch.randn(5, 3, 2, generator=generator).bfloat16(),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "odd": torch.randn(3, generator=generator).half(),
    }


# --- values ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ways_to_a_value(layout: str, tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, layout)
    with WeightReader(list_tensors(tmp_path)) as reader:
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(name), tensor)
            assert reader.view(name) is None  # nothing is mapped
            for block_bytes in (1, 64, 10**6):
                blocks = [block.clone() for block in reader.blocks(name, block_bytes)]
                assert torch.equal(torch.cat(blocks) if blocks else tensor, tensor.reshape(tensor.shape or (1,)))
            if tensor.is_floating_point():
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    out = torch.full(tensor.shape, 9, dtype=dtype)
                    reader.copy_to(name, out)
                    assert torch.equal(out, tensor.to(dtype))


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    buffer_bytes=st.integers(1, 40),
    block_bytes=st.integers(1, 200),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.float16, torch.bfloat16])] * 2),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_borders_of_blocks_do_not_show(
    shape: list[int], buffer_bytes: int, block_bytes: int, dtypes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CONVERTED_BYTES", 4 * buffer_bytes)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtypes[0])
    save_file({"before": torch.ones(3, dtype=torch.int8), "tensor": tensor}, tmp_path / "model.safetensors")
    with WeightReader(list_tensors(tmp_path)) as reader:
        out = torch.empty(shape, dtype=dtypes[1])
        reader.copy_to("tensor", out)
        assert torch.equal(out, tensor.to(dtypes[1]))
        assert torch.equal(torch.cat([block.clone() for block in reader.blocks("tensor", block_bytes)]), tensor)


def test_several_tensors_can_be_read_at_the_same_time(tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "safetensors_shards")
    with WeightReader(list_tensors(tmp_path)) as reader:
        for one, other in zip(reader.blocks("matrix", 64), reader.blocks("matrix", 64), strict=True):
            assert torch.equal(one, other)


def test_tensors_of_a_folder_own_their_memory(tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "bin")
    read = dict(iter_tensors(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


# --- places in files ---


@pytest.mark.parametrize("layout", PLAIN_LAYOUTS)
def test_a_place_is_where_the_bytes_are(layout: str, tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, layout)
    for name, stored in list_tensors(tmp_path).items():
        assert stored.offset is not None
        content = stored.path.read_bytes()[stored.offset : stored.offset + stored.size_bytes]
        assert content == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()


def test_files_of_before_2020_have_no_places(tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "bin_old")
    assert {stored.offset for stored in list_tensors(tmp_path).values()} == {None}


def test_forgotten_tensors_of_such_a_file_are_given_up(tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "bin_old")
    with WeightReader(list_tensors(tmp_path)) as reader:
        assert torch.equal(reader.read("matrix"), tensors["matrix"])
        reader.forget("matrix")
        assert torch.equal(reader.read("bias"), tensors["bias"])
        with pytest.raises(KeyError):
            reader.read("matrix")


def test_views_of_other_tensors_in_a_bin_file(tmp_path: Path) -> None:
    """torch.save keeps views; those whose rows do not follow each other have no place."""
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"whole": whole, "rows": whole[1:3], "columns": whole[:, 1:3], "turned": whole.T}
    torch.save(views, tmp_path / "pytorch_model.bin")
    listed = list_tensors(tmp_path)
    assert {name for name, stored in listed.items() if stored.offset is None} == {"columns", "turned"}
    with WeightReader(listed) as reader:
        for name, tensor in views.items():
            assert torch.equal(reader.read(name), tensor)
            assert torch.equal(torch.cat([block.clone() for block in reader.blocks(name, 8)]), tensor)


def test_a_bin_file_with_the_other_byte_order(tmp_path: Path) -> None:
    """Its places would give numbers turned round; torch turns them back."""
    tensor = torch.arange(6.0)
    torch.save({"a": tensor.view(torch.uint8).reshape(-1, 4).flip(1).reshape(-1).view(torch.float32)}, tmp_path / "x")
    other = "big" if sys.byteorder == "little" else "little"
    with zipfile.ZipFile(tmp_path / "x") as old, zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as new:
        for name in old.namelist():
            new.writestr(name, other.encode() if name.endswith("/byteorder") else old.read(name))
    assert list_tensors(tmp_path)["a"].offset is None
    ((_, read),) = iter_tensors(tmp_path)
    assert torch.equal(read, tensor)


def test_a_bin_file_that_someone_packed(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(5000)}, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as old, zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    assert list_tensors(tmp_path)["a"].offset is None
    ((_, read),) = iter_tensors(tmp_path)
    assert torch.equal(read, torch.zeros(5000))


# --- mapped files ---


@pytest.mark.parametrize("layout", PLAIN_LAYOUTS)
def test_views_are_the_values_and_outlive_the_reader(layout: str, tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, layout)
    listed = list_tensors(tmp_path)
    with WeightReader(listed, is_mapped=True) as reader:
        views = {name: reader.view(name) for name in tensors}
        assert torch.equal(reader.read("matrix"), tensors["matrix"])
    for name, view in views.items():
        stored = listed[name]
        is_odd = not stored.size_bytes or stored.offset is None or stored.offset % stored.dtype.itemsize
        assert (view is None) == bool(is_odd)
        assert view is None or torch.equal(view, tensors[name])
    assert sum(view is not None for view in views.values()) >= 5


def test_writing_to_a_view_leaves_the_file_alone(tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with WeightReader(list_tensors(tmp_path), is_mapped=True) as reader:
        view = reader.view("matrix")
    assert view is not None
    view.zero_()
    assert not view.any()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_place_that_is_odd_for_its_type_is_not_viewed(tmp_path: Path) -> None:
    """Processors and kernels may want numbers at multiples of their size; the format does not promise that."""
    save_file({"a": torch.ones(3, dtype=torch.int8), "b": torch.arange(4.0)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    shifted = (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(shifted)
    with WeightReader(list_tensors(tmp_path), is_mapped=True) as reader:
        assert reader.view("b") is None
        assert reader.view("a") is not None
        assert torch.equal(reader.read("b"), torch.arange(4.0))


def test_a_mapped_file_may_be_replaced(tensors: Tensors, tmp_path: Path) -> None:
    """A new file under the old name, as downloads and our own tools write it, leaves the mapping as it was."""
    write_weights(tmp_path, tensors, "safetensors")
    with WeightReader(list_tensors(tmp_path), is_mapped=True) as reader:
        view = reader.view("matrix")
    (tmp_path / "new").write_bytes(bytes(100))
    os.replace(tmp_path / "new", tmp_path / "model.safetensors")
    assert view is not None
    assert torch.equal(view, tensors["matrix"])


# --- changed files ---


@pytest.mark.parametrize("layout", ["safetensors", "bin", "bin_old"])
def test_another_file_than_the_listed_one(layout: str, tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, layout)
    listed = list_tensors(tmp_path)
    write_weights(tmp_path, {**tensors, "matrix": torch.zeros(51, 30).half()}, layout)
    with WeightReader(listed) as reader, pytest.raises(DamagedFileError, match="was changed while it was in use"):
        reader.read("matrix")


@pytest.mark.parametrize("change", ["cut", "touch"])
def test_a_file_that_changes_while_it_is_open(change: str, tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "safetensors")
    path = tmp_path / "model.safetensors"
    with WeightReader(list_file(path)) as reader:
        reader.read("bias")
        if change == "cut":
            os.truncate(path, path.stat().st_size - 100)
        else:
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        with pytest.raises(DamagedFileError, match=re.escape(str(path))):
            [reader.read(name) for name in tensors]


def test_a_file_that_cannot_be_opened(tensors: Tensors, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "safetensors")
    listed = list_tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with WeightReader(listed) as reader, pytest.raises(Exception, match=r"model\.safetensors is missing"):
        reader.read("matrix")


# --- memory ---


@pytest.mark.parametrize("size", [0, 1, 4097, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5])
def test_new_tensors_are_zero_and_aligned(size: int) -> None:
    tensor = new_tensor((size,), torch.uint8)
    assert tensor.shape == (size,)
    assert tensor.untyped_storage().nbytes() == size
    assert not tensor.any()
    tensor.fill_(7)
    if size >= HUGE_PAGE_BYTES:
        assert tensor.data_ptr() % HUGE_PAGE_BYTES == 0


def test_more_memory_than_there_can_be_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        new_tensor((2**60,), torch.uint8)


@pytest.mark.parametrize("size", [0, 1, SERIAL_ELEMENTS, SERIAL_ELEMENTS + 1, 3 * SERIAL_ELEMENTS])
def test_converting_in_pieces(size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(convert_into(torch.empty(size, dtype=torch.half), values), values.half())


def huge_bytes(address: int) -> int:
    """Bytes of huge pages in the mapping around `address`."""
    is_around = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_around = int(match[1], 16) <= address < int(match[2], 16)
        elif is_around and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return 0


def test_large_tensors_are_in_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text(encoding="ascii"):
        pytest.skip("this system has no huge pages to give")
    tensor = new_tensor((32 * HUGE_PAGE_BYTES + 5000,), torch.uint8)
    tensor.fill_(1)
    assert huge_bytes(tensor.data_ptr()) >= 16 * HUGE_PAGE_BYTES  # the kernel may not have found all of them
