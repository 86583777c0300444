"""chatglm.checkpoints: every published layout is read, every way a file comes out damaged is named."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chatglm.checkpoints import (
    StoredTensor,
    check_usable,
    find_weight_files,
    iter_tensors,
    list_file,
    list_tensors,
    read_config,
    total_bytes,
)
from chatglm.errors import (
    CheckpointError,
    DamagedFileError,
    MismatchError,
    MissingFileError,
    PointerFileError,
    UnsupportedModelError,
)
from tests.folders import LAYOUTS, cut, make_pointer, write_weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(5, 3).half(),
        "b.weight": torch.randn(4, 2, dtype=torch.bfloat16),
        "c.bias": torch.randn(7),
        "d.weight": torch.randint(-128, 127, (3, 2), dtype=torch.int8),
        "e.scalar": torch.tensor(1.5),
        "f.empty": torch.zeros(0, 3),
        "g.flags": torch.tensor([True, False]),
        "h.ids": torch.arange(4),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_listed_and_read(layout: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, layout)
    listed = list_tensors(tmp_path)
    assert listed.keys() == tensors.keys()
    for name, stored in listed.items():
        assert (stored.shape, stored.dtype) == (tuple(tensors[name].shape), tensors[name].dtype)
        assert stored.path.parent == tmp_path
    assert total_bytes(listed.values()) == sum(tensor.nbytes for tensor in tensors.values())
    read = dict(iter_tensors(tmp_path))
    assert read.keys() == tensors.keys()
    for name, tensor in read.items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_wanted_tensors_are_read(layout: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, layout)
    assert [name for name, _ in iter_tensors(tmp_path, lambda name: name.endswith(".bias"))] == ["c.bias"]


def test_safetensors_go_before_bin(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "bin")
    write_weights(tmp_path, tensors, "safetensors")
    assert [path.name for path in find_weight_files(tmp_path).paths] == ["model.safetensors"]


def test_shards_without_an_index_are_found_by_their_numbers(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "bin_shards")
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert list_tensors(tmp_path).keys() == tensors.keys()
    lost = tmp_path / "pytorch_model-00003-of-00008.bin"
    lost.unlink()
    with pytest.raises(MissingFileError, match=lost.name):
        list_tensors(tmp_path)


def test_parameters_are_accepted_as_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "pytorch_model.bin")
    ((_, tensor),) = iter_tensors(tmp_path)
    assert not tensor.requires_grad


def test_num_elements_of_a_description(tmp_path: Path) -> None:
    stored = StoredTensor((3, 4), torch.float16, tmp_path)
    assert (stored.num_elements, stored.size_bytes) == (12, 24)


# --- files that cannot be used: each sentence names the file and what to do ---


def expect(kind: type[CheckpointError], path: Path, *words: str) -> None:
    """`list_file` and `iter_tensors` both refuse `path` with this kind of error, its name, and these words."""
    with pytest.raises(kind) as raised:
        list_file(path)
    for word in (str(path), *words):
        assert word in str(raised.value)
    assert raised.value.remedy
    with pytest.raises(kind):
        list(iter_tensors(path.parent))


@pytest.mark.parametrize("layout", ["safetensors", "bin", "bin_old"])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file(layout: str, keep: float, tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": torch.randn(100, 50), "b": torch.randn(10)}, layout)
    path = next(tmp_path.iterdir())
    cut(path, keep)
    expect(DamagedFileError, path, "Download this file again")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer(name: str, tmp_path: Path) -> None:
    make_pointer(tmp_path / name)
    expect(PointerFileError, tmp_path / name, "Git-LFS pointer", "1,740,651,802 bytes", "git lfs pull")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\n <html lang=en>", "web page"),
        (b"not weights at all, but long enough to be read", "again"),
        (b"\x80\x02garbage", "damaged"),
        (b"PK\x03\x04garbage", "damaged"),
        (bytes(64), "damaged|not a PyTorch file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "damaged|not a PyTorch file"),
    ],
)
def test_something_else_under_the_name(name: str, content: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=word) as raised:
        list_file(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
        {"dtype": "F32"},
        7,
    ],
)
def test_a_senseless_safetensors_header(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    expect(DamagedFileError, path, "damaged")


def header_of(*entries: str) -> bytes:
    """A file with this text in its header and eight bytes of data."""
    header = ("{" + ", ".join(entries) + "}").encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def entry_of(name: str, begin: Any, end: Any, shape: str = "[1]", dtype: str = "F32") -> str:
    return f'"{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


HEADERS = {
    "infinity": (entry_of("a", 0, 4, "[Infinity]"), "Infinity in it"),
    "not a number": (entry_of("a", "NaN", 4), "NaN in it"),
    "a fraction": (entry_of("a", 0, 4.0, "[1.0]"), "cannot be understood"),
    "true": (entry_of("a", 0, 4, "[true]"), "cannot be understood"),
    "overlap": (f"{entry_of('a', 0, 4)}, {entry_of('b', 2, 8, '[3]', 'F16')}", "do not begin where"),
    "the same place": (f"{entry_of('a', 0, 8, '[2]')}, {entry_of('b', 0, 8, '[2]')}", "do not begin where"),
    "a gap": (entry_of("a", 4, 8), "do not begin where"),
    "beyond the end": (entry_of("a", 0, 12, "[3]"), "cut short"),
    "more data": (entry_of("a", 0, 4), "4 bytes follow"),
    "twice": (f"{entry_of('a', 0, 4)}, {entry_of('a', 4, 8)}", "a name that is there twice"),
    "notes": (f'"__metadata__": {{"a": 1}}, {entry_of("a", 0, 8, "[2]")}', "no table of tensors and notes"),
    "huge": (entry_of("a", 0, 8, "[99999999999, 99999999999]"), "contradicts itself"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_safetensors_header(name: str, tmp_path: Path) -> None:
    entries, words = HEADERS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_of(entries))
    expect(DamagedFileError, path, words)
    with pytest.raises((SafetensorError, OverflowError, ValueError)):  # the library of the format agrees
        load_file(path)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((7_000_000).to_bytes(8, "little") + b"{}")
    expect(DamagedFileError, path, "cut short")
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    expect(DamagedFileError, path, "does not begin with a header")


def test_numbers_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_of(entry_of("a", 0, 8, "[8]", "F8_E4M3")))
    expect(UnsupportedModelError, path, "F8_E4M3 numbers", "float16")


class Poison:
    """Unpickled without care, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", 0, 1, 2, 3, 4, 5])
def test_a_poisoned_pickle_is_not_executed(form: str | int, tmp_path: Path) -> None:
    """By torch.save of today and of before 2020, or by pickle itself, of whatever protocol: it is named as one."""
    trace, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    if isinstance(form, int):
        path.write_bytes(pickle.dumps([1, "mkdir", Poison(trace)], protocol=form))
    else:
        content = {"a": torch.ones(2), "b": Poison(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    expect(DamagedFileError, path, "pickle that holds something other", "nothing of it was executed", ".mkdir", "trust")
    assert not trace.exists()


def test_tensors_that_are_more_than_their_file(tmp_path: Path) -> None:
    """One number that is shown a million times, or packed zeros."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(1000, 1000)}, path)
    expect(DamagedFileError, path, "more numbers than it holds")
    torch.save({"a": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    (tmp_path / "packed").replace(path)
    expect(DamagedFileError, path, "unpacks to 4,0")


@pytest.mark.parametrize(
    "content",
    [[torch.ones(2)], {"a": torch.ones(2).to_sparse()}, {"state": {"a": torch.ones(2)}}, torch.ones(2), {"step": 5}],
)
def test_a_file_that_is_no_table_of_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    expect(DamagedFileError, tmp_path / "pytorch_model.bin", "plain table")


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no weights") as raised:
        find_weight_files(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_shard_named_by_the_index_is_missing(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "safetensors_shards")
    lost = tmp_path / "model-00005-of-00008.safetensors"
    lost.unlink()
    expect(MissingFileError, lost, "Download", lost.name)


def test_a_shard_lacks_what_the_index_promises(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_weights(tmp_path, tensors, "safetensors_shards")
    shard = "model-00001-of-00008.safetensors"
    save_file({"other": torch.ones(1)}, tmp_path / shard)
    with pytest.raises(MismatchError) as raised:
        list_tensors(tmp_path)
    for word in ("model.safetensors.index.json", shard, "a.weight", "one download"):
        assert word in str(raised.value)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": "../secret.bin"}, {"a": "/etc/passwd"}, {"a": "x\\y.bin"}])
def test_an_index_that_cannot_be_used(weight_map: Any, tmp_path: Path) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(DamagedFileError) as raised:
        find_weight_files(tmp_path)
    assert str(index) in str(raised.value)


# --- config.json ---


def test_config_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_config(tmp_path) == {"a": 1}


@pytest.mark.parametrize("content", [b'{"a": 1', b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_config_that_is_not_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match="JSON") as raised:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(raised.value)
    assert "Download" in raised.value.remedy


def test_config_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_link_into_nowhere_is_a_missing_file(tmp_path: Path) -> None:
    """A hub cache whose blob was deleted keeps such links."""
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(MissingFileError, match=r"model\.safetensors"):
        check_usable(tmp_path / "model.safetensors")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DamagedFileError, match="Permission denied"):
        check_usable(tmp_path / "model.safetensors")
