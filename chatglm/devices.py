"""Devices, number types and free memory of this machine and its containers. CUDA is used on request or by "auto"."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from chatglm.errors import DeviceError
from chatglm.sizes import format_bytes

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
}
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# On a CPU, a model below this many bytes of float32 weights runs in float32: it is small enough to be quick anyway.
SMALL_MODEL_BYTES = 10**9


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device "auto" (first of cuda, mps, cpu), "cpu", "cuda", "cuda:n" or "mps"; raises DeviceError if absent."""
    asked = str(name).strip().lower()
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = asked.partition(":")
    if kind == "cuda" and (not index or index.isdecimal()):
        return _cuda_device(int(index or 0))
    if asked == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("There is no MPS device here (it needs a Mac with Apple silicon).", "Use --device cpu.")
    if asked in ("cpu", "mps"):
        return torch.device(asked)
    raise DeviceError(f"{name!r} is not a device.", "Use auto, cpu, cuda, cuda:0 (or another number) or mps.")


def _cuda_device(index: int) -> torch.device:
    if not torch.cuda.is_available():
        build = "" if torch.backends.cuda.is_built() else f" (PyTorch {torch.__version__} was built without CUDA)"
        raise DeviceError(f"There is no usable CUDA device here{build}.", "Use --device cpu, or install a CUDA build.")
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"There is no device cuda:{index}; this machine has {count}.", f"Use cuda:0 to cuda:{count - 1}."
        )
    return torch.device("cuda", index)


def choose_dtype(name: str | torch.dtype, device: torch.device, float32_bytes: int) -> torch.dtype:
    """A dtype: "fp32", "bf16", "fp16", a long name, or "auto": fp16 on CUDA and MPS; on a CPU, which is slow in fp16,
    float32 for small models and bfloat16 for others. `float32_bytes`: size of the weights. Raises DeviceError.
    """
    if isinstance(name, torch.dtype) and name in DTYPE_NAMES:
        return name
    asked = str(name).strip().lower().removeprefix("torch.")
    if asked in DTYPES:
        return DTYPES[asked]
    if asked != "auto":
        raise DeviceError(f"{name!r} is not a number type for weights.", "Use auto, fp32, bf16 or fp16.")
    if device.type != "cpu":
        return torch.float16
    return torch.float32 if float32_bytes < SMALL_MODEL_BYTES else torch.bfloat16


def dtype_warning(dtype: torch.dtype, device: torch.device) -> str:
    """A warning about an unwise pair of type and device, or ""."""
    if device.type == "cpu" and dtype == torch.float16:
        return "fp16 is slow on a CPU; --dtype bf16 takes the same memory and is usually faster."
    if device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return "bf16 is slow on this GPU, which does not compute in it; --dtype fp16 takes the same memory."
    return ""


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device` without anything being killed or swapped; None if unknown."""
    if device.type == "cuda":
        # What torch keeps for later is free to us as well.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    # MPS shares the memory of the host.
    known = [size for size in (_host_available(), container_available()) if size is not None]
    return min(known, default=None)


def _host_available() -> int | None:
    if sys.platform == "win32":
        return _windows_available()
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # macOS and other Unix systems: all of the physical memory is the best that can be known without a helper
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


class _MemoryStatus(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        *((f"unused_{i}", ctypes.c_uint64) for i in range(5)),
    ]


def _windows_available() -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    return int(status.available_physical) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def container_available(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Bytes left under the tightest cgroup limit (Linux), cached files counted as free; None without a limit."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            left += _left_in(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left += _left_in(root / "memory", path, *names)
    return min(left, default=None)


def _left_in(root: Path, path: str, limit_name: str, usage_name: str, reclaimable_name: str) -> list[int]:
    """Bytes left in the group `path` and in each group around it that has a limit."""
    left = []
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        try:
            limit = (folder / limit_name).read_text(encoding="ascii").strip()
            if limit != "max" and int(limit) < 2**60:  # version 1 writes "no limit" as a huge number
                used = int((folder / usage_name).read_text(encoding="ascii"))
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left.append(max(0, int(limit) - used + int(statistics.get(reclaimable_name, 0))))
        except (OSError, ValueError):
            pass  # inside a container the path of the group may not exist; the root of the mount then has the limit
        if folder == root:
            break
    return left


def describe_devices() -> list[str]:
    """One line per device of this machine, with its free memory. Touches CUDA when it is available."""
    host = available_memory(torch.device("cpu"))
    lines = [f"cpu: {os.cpu_count()} cores, {format_bytes(host) if host else 'unknown memory'} available"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            lines.append(f"cuda:{index}: {name}, {format_bytes(free)} of {format_bytes(total)} free")
    if torch.backends.mps.is_available():
        lines.append("mps: Apple GPU, shares the memory of the host")
    return lines
