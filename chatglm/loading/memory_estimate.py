"""What a network takes on a device, whether that fits, and the messages about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatglm import kernels
from chatglm.devices import DTYPE_NAMES, available_memory, choose_dtype, dtype_warning
from chatglm.errors import DeviceError, InvalidRequestError, OutOfMemoryError
from chatglm.loading.tied_embedding import may_tie
from chatglm.model_spec import ModelSpec
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear
from chatglm.sizes import format_bytes

PACKED = (QuantizedLinear, QuantizedEmbedding)
SCALE = ".weight_scale"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a network's weights, and of the KV cache of one conversation that fills the context."""

    weights_bytes: int
    cache_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes


def cache_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Keys and values of a full context: 2 * L * G * D * context * item size."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_width * spec.context_limit * dtype.itemsize


def kept_tensors(network: Any, stored: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors of a network that take memory: without the output head where it will be tied, or may be."""
    head = f"{network.spec.head}."
    is_tied = may_tie(network) or (network.spec.ties_embedding and network.spec.head_weight not in stored)
    return {name: t for name, t in network.state_dict().items() if not (is_tied and name.startswith(head))}


def bytes_in_memory(tensors: Iterable[torch.Tensor], dtype: torch.dtype) -> int:
    """Bytes of an empty network's tensors with values of `dtype`; packed integers and half scales keep their size."""
    return sum(t.numel() * (dtype if t.dtype == torch.float32 else t.dtype).itemsize for t in tensors)


def count_parameters(network: Any, stored: Collection[str]) -> int:
    """Weights of the model, however many of them a byte holds; scales do not count, a tied embedding counts once."""
    bits = {f"{name}.weight": module.bits for name, module in network.named_modules() if isinstance(module, PACKED)}
    tensors = kept_tensors(network, stored)
    return sum(t.numel() * 8 // bits.get(name, 8) for name, t in tensors.items() if not name.endswith(SCALE))


def memory_needed(
    tensors: Iterable[torch.Tensor],
    config: Any,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> MemoryEstimate:
    """Bytes of these tensors as `dtype`, and of a full context's KV cache (16-bit where native kernels attend)."""
    is_cpu = device is not None and device.type == "cpu"
    has_half_cache = is_cpu and config.quantization_bit and kernels.backend_name() == "native"
    return MemoryEstimate(
        bytes_in_memory(tensors, dtype), cache_bytes(spec, torch.float16 if has_half_cache else dtype)
    )


def check_memory_options(device: torch.device, is_mapped: bool, limit: int | None) -> None:
    """Raise DeviceError or InvalidRequestError for --mmap or --max-memory on no CPU, or for both."""
    flags = ["--mmap"] * is_mapped + ["--max-memory"] * (limit is not None)
    if flags and device.type != "cpu":
        raise DeviceError(f"{flags[0]} is for the CPU, but the model would run on {device}.", "Give --device cpu too.")
    if len(flags) == 2:
        raise InvalidRequestError(
            "--mmap and --max-memory exclude each other: one keeps all weights at hand, the other only some.",
            "Give one of them.",
        )


def type_for(name: str | torch.dtype, device: torch.device, tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The type that `choose_dtype` gives an empty network; packed weights and their group scales do not count."""
    return choose_dtype(name, device, 4 * sum(t.numel() for t in tensors if t.dtype == torch.float32))


def precision_name(config: Any, dtype: torch.dtype, device: torch.device | None = None) -> str:
    """What a network computes with, and where: "bf16 on cpu", "int4 on cpu (activations fp32, embedding int8)"."""
    place = f" on {device}" if device is not None else ""
    if not config.quantization_bit:
        return f"{DTYPE_NAMES[dtype]}{place}"
    bits = config.quantization_embedding_bit
    embedding = f", embedding int{bits}" if bits else ""
    return f"int{config.quantization_bit}{place} (activations {DTYPE_NAMES[dtype]}{embedding})"


def check_memory(
    folder: Path,
    need: MemoryEstimate,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    report: Callable[[str], object],
) -> None:
    """Report what the model needs and what is free; raise OutOfMemoryError if the weights alone exceed it."""
    free = available_memory(device)
    message = memory_message(need, precision_name(config, dtype, device), free)
    if free is not None and need.weights_bytes > free:
        raise OutOfMemoryError(f"{folder} does not fit: {message}", _smaller(config, dtype, device))
    report(message)
    if free is not None and need.total_bytes > free:
        report(
            f"Long conversations may not fit: their cache takes up to {format_bytes(need.cache_bytes)}; "
            "give a smaller --max-length."
        )
    if warning := dtype_warning(dtype, device):
        report(warning)


def memory_message(need: MemoryEstimate, precision: str, free: int | None) -> str:
    """What runs, what its weights need and what is free: short, since every start shows it."""
    have = format_bytes(free) if free is not None else "memory unknown"
    return f"{precision}: needs {format_bytes(need.weights_bytes)}, free {have}."


def _smaller(config: Any, dtype: torch.dtype, device: torch.device) -> str:
    remedies = []
    if not config.quantization_bit:
        half = "bf16" if device.type == "cpu" else "fp16"
        remedies += [f"--dtype {half} halves the memory."] * (dtype == torch.float32)
        remedies.append("--quantize 4 takes less than a third of 16 bits.")
    if device.type == "cpu":
        remedies.append("--max-memory runs within less, slowly.")
    return " ".join([*remedies, "Close other programs, or use a machine or --device with more memory."])


@contextmanager
def memory_errors(folder: Path, device: torch.device) -> Iterator[None]:
    """Turn allocation failures into OutOfMemoryError: memory may go to others between the check and the load."""
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
