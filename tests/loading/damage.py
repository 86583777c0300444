"""Damages one file of a model folder, in one of many ways; the same number gives the same damage."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 8, 0.5, 1e30, 10**9, 10**30, -(10**9), 2**31, 2**63, float("nan"),
    float("inf"), "", "x", "4", "\ud83d", "a" * 10_000,
    "../../etc/passwd", "torch.nn", "字", "I16", "I8", "U8", "BOOL", "F64", [], {}, [1], {"a": 1}, [[]], [None],
    {"content": 5}, {"content": "<eop>"}, ["<pad>"], "float64",
    "all-linear", "(.*)*[", r"(?:(?:.|..)+)+[^\w.]",
    {"dense": 4}, {"(": 1}, [0, 4], [-1, 10**20], list(range(3000)), [[1, 2], [3]],
]  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
WHOLE_FILES = [
    b"",
    b"\n",
    b"{}",
    b"[]",
    b"null",
    b"<!doctype html>",
    POINTER,
    b"\xef\xbb\xbf{}",
    b"PK\x03\x04",
    b"\x80\x02}.",
]
WHOLE_FILES += [
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"\x00" * 100,
    b"\x80\x04\x95" + b"\xff" * 8,
    b"(dp0\n.",
    b"cos\nsystem\n.",
]


def damage(folder: Path, number: int) -> str:
    """Damage a file; what was done."""
    source = random.Random(number)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = source.choice(files)
    ways: list[Callable[[Path, random.Random], str]] = [change_bytes, change_bytes, replace_file]
    if path.suffix == ".json":
        ways += [change_json] * 12
    elif path.suffix == ".safetensors":
        ways += [change_header] * 6
    return f"{path.relative_to(folder)}: {source.choice(ways)(path, source)}"


def change_bytes(path: Path, source: random.Random) -> str:
    """Some bytes are others, lost, doubled or new."""
    content = bytearray(path.read_bytes())
    for _ in range(source.choice((1, 1, 3, 20))):
        place, length = source.randrange(len(content) + 1), source.choice((1, 1, 4, 64, 5000))
        if source.random() < 0.5:  # where the structure of a file is
            place = min(place, source.randrange(2000))
        way = source.choice(("flip", "cut", "delete", "double", "insert", "zero"))
        if way == "flip" and place < len(content):
            content[place] ^= 1 << source.randrange(8)
        elif way == "cut":
            del content[place:]
        elif way == "delete":
            del content[place : place + length]
        elif way == "double":
            content[place:place] = content[place : place + length]
        elif way == "insert":
            content[place:place] = source.randbytes(length)
        else:
            content[place : place + length] = bytes(len(content[place : place + length]))
    path.write_bytes(content)
    return "bytes"


def replace_file(path: Path, source: random.Random) -> str:
    """It is gone, or something else has its name."""
    way = source.choice(
        ("gone", "folder", "link to itself", "huge", "renamed", "shard", "content", "content", "content")
    )
    if way == "renamed":
        path.rename(path.with_name(source.choice(("model.safetensors", "pytorch_model.bin", "x.bin", "a" * 200))))
    elif way == "shard":
        path.rename(path.with_name(source.choice(("model-1-of-99999999999.bin", "pytorch_model-00001-of-00000.bin"))))
    elif way == "content":
        path.write_bytes(source.choice(WHOLE_FILES))
    elif way == "huge":
        os.truncate(path, 2**32)  # a hole: it takes no room
    else:
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "link to itself":
            path.symlink_to(path.name)
    return way


def change_json(path: Path, source: random.Random) -> str:
    """Values are of other types and sizes, keys are gone or new."""
    return _change_tree(path, json.loads(path.read_text(encoding="utf-8")), source, _write_json)


def change_header(path: Path, source: random.Random) -> str:
    """The same in the header of a weight file, whose length is right."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    def write(path: Path, header: Any) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return _change_tree(path, json.loads(content[8:end]), source, write)


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


def _change_tree(path: Path, tree: Any, source: random.Random, write: Callable[[Path, Any], None]) -> str:
    done = []
    for _ in range(source.choice((1, 1, 1, 3))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = source.choice(keys) if keys else None
            inner = node[key] if keys else None
            if not isinstance(inner, (dict, list)) or not inner or source.random() < 0.3:
                break
            node = inner
        value = copy.deepcopy(source.choice(ODD_VALUES))
        if isinstance(node, dict) and (key is None or source.random() < 0.1):
            key = source.choice(
                ("quantization_bit", "pre_seq_len", "num_hidden_layers", "x", "\ud83d", "prefix_projection")
            )
        elif key is None:
            continue
        if source.random() < 0.1 and keys:
            del node[keys[0]]
            done.append(f"without {keys[0]}"[:60])
        else:
            node[key] = value
            done.append(f"{key}={value!r}"[:60])
    write(path, tree)
    return ", ".join(done)
