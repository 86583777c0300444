"""What a network takes on a device, whether that fits, and the sentences about it.

Knows: types, caches, free memory. Does not know how weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chatglm import kernels
from chatglm.checkpoints.validate.expected_weights import bytes_in_memory
from chatglm.devices import (
    DTYPE_NAMES,
    MemoryEstimate,
    available_memory,
    choose_dtype,
    dtype_warning,
    estimate_memory,
    format_bytes,
)
from chatglm.errors import DeviceError, InvalidRequestError, OutOfMemoryError


def check_memory_options(device: torch.device, is_mapped: bool, limit: int | None) -> None:
    """Refuse --mmap and --max-memory together, or where they cannot be.

    Raises:
        DeviceError: the device is no CPU.
        InvalidRequestError: both were given.
    """
    flags = ["--mmap"] * is_mapped + ["--max-memory"] * (limit is not None)
    if flags and device.type != "cpu":
        raise DeviceError(f"{flags[0]} is for the CPU, but the model would run on {device}.", "Give --device cpu too.")
    if len(flags) == 2:
        raise InvalidRequestError(
            "--mmap and --max-memory exclude each other: one keeps all weights at hand, the other only some.",
            "Give one of them.",
        )


def type_for(name: str | torch.dtype, device: torch.device, parameters: Iterable[torch.Tensor]) -> torch.dtype:
    """The type that `choose_dtype` picks for an empty network's parameters: packed weights and their group scales
    take no part in it, since they are the same in every type."""
    return choose_dtype(name, device, 4 * sum(t.numel() for t in parameters if t.dtype == torch.float32))


def memory_needed(
    parameters: Iterable[torch.Tensor], config: Any, dtype: torch.dtype, device: torch.device
) -> MemoryEstimate:
    """What these parameters take as `dtype`, with the KV cache of one conversation that fills the context.

    The native kernels, which quantized networks use on a CPU, keep 16-bit caches.
    """
    has_half_cache = device.type == "cpu" and config.quantization_bit and kernels.backend_name() == "native"
    return estimate_memory(
        bytes_in_memory(parameters, dtype),
        torch.float16 if has_half_cache else dtype,
        config.max_sequence_length,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
    )


def check_memory(
    folder: Path,
    need: MemoryEstimate,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Say what the model needs and what there is; raise OutOfMemoryError if the weights alone exceed it."""
    free = available_memory(device)
    sentence = memory_sentence(need, context, dtype, device, free)
    if free is not None and need.weights_bytes > free:
        raise OutOfMemoryError(f"{folder} does not fit: {sentence}", _smaller(dtype, device))
    say(sentence)
    if free is not None and need.total_bytes > free:
        say("Long conversations may not fit; give a smaller --max-length.")
    if remark := dtype_warning(dtype, device):
        say(remark)


def memory_sentence(
    need: MemoryEstimate, context: int, dtype: torch.dtype, device: torch.device, free: int | None
) -> str:
    """What is needed and what there is, in one sentence."""
    have = f"{format_bytes(free)} are free" if free is not None else "how much is free is unknown"
    return (
        f"{DTYPE_NAMES[dtype]} on {device} needs {format_bytes(need.weights_bytes)} for the weights and up to "
        f"{format_bytes(need.cache_bytes)} for a conversation of {context} tokens; {have}."
    )


def _smaller(dtype: torch.dtype, device: torch.device) -> str:
    if device.type == "cpu":
        half = "--dtype bf16 halves the memory; " if dtype == torch.float32 else ""
        return f"{half}--max-memory runs within less, slowly. Close other programs, or use a larger machine."
    if dtype == torch.float32:
        return "--dtype fp16 halves the memory."
    return "Close other programs, or use a machine (or --device) with more memory."


@contextmanager
def memory_errors(folder: Path, device: torch.device) -> Iterator[None]:
    """Allocation failures, as our error: memory may go to others between the check and the load."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU, torch raises a plain RuntimeError when memory runs out.
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not is_memory:
            raise
        raise OutOfMemoryError(
            f"Memory ran out on {device} while loading {folder}.", "Close other programs, or use another --device."
        ) from None
