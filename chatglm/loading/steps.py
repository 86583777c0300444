"""`load`: find, examine, choose device and type, check memory, fill the network, make the tokenizer.

Knows: the order of these steps. Does not know how each is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from chatglm.checkpoints import read_json
from chatglm.demo import CHECKPOINT
from chatglm.devices import (
    DTYPE_NAMES,
    MemoryEstimate,
    available_memory,
    choose_device,
    choose_dtype,
    dtype_remark,
    format_bytes,
)
from chatglm.doctor import examine
from chatglm.doctor.weights import bytes_in_memory, kept_parameters, memory_needed
from chatglm.errors import DamagedFileError, InvalidRequestError, OutOfMemoryError
from chatglm.loading.licence import notice_once
from chatglm.loading.network import Progress, fill_network
from chatglm.loading.prefix import StoredPrefix, check_prefix_fits, configure_prefix, find_prefix
from chatglm.loading.sources import find_folder
from chatglm.models import Family
from chatglm.quantization.packing import check_bits


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: the network, in eval mode, on its device.
        tokenizer: the family's tokenizer of the same folder.
        family: which family it is of.
        folder: where it was loaded from.
        is_demo: whether it is the embedded demo model.
    """

    model: Any
    tokenizer: Any
    family: Family
    folder: Path
    is_demo: bool


def load(
    model: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: int | None = None,
    ptuning_checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer.

    Host memory peaks at the network in its final type plus one shard. Nothing stays behind when this raises.

    Args:
        model: None or "demo" for the embedded demo model, a folder, or a hub id.
        device: "auto", "cpu", "cuda", "cuda:n" or "mps".
        dtype: "auto", "fp32", "bf16" or "fp16".
        quantize: 4 or 8 packs the weights of an unquantized folder while they are read; a quantized folder needs
            nothing here.
        ptuning_checkpoint: folder (or file) of a P-Tuning v2 prefix trained on this model.
        progress: called with (bytes read, bytes to read) after each tensor.
        report: called with sentences for the user: memory estimate, remarks, licence of the weights.

    Raises:
        CheckpointError: something is wrong with the folder; names the file and the remedy.
        DeviceError: no such device or type.
        InvalidRequestError: quantize is not 4 or 8, or the folder is quantized to another width already.
        OutOfMemoryError: the model cannot fit; carries the numbers.
    """
    say = report if report is not None else lambda sentence: None
    chosen_device = choose_device(device)  # first: a wrong flag needs no wait
    folder = find_folder(model)
    prefix = find_prefix(ptuning_checkpoint) if ptuning_checkpoint is not None else None
    examined = examine(folder, prefix_elsewhere=prefix is not None)
    examined.raise_first()
    family, config = examined.family, examined.config
    assert family is not None  # a healthy report has both
    assert config is not None
    settings = _generation_settings(folder)
    if quantize is not None:
        _ask_for_quantized(folder, config, quantize)
    network = _network_with_prefix(family, config, prefix)
    parameters = kept_parameters(network, examined.tensors)
    chosen_dtype = choose_dtype(dtype, chosen_device, bytes_in_memory(parameters, torch.float32))
    need = memory_needed(parameters, config, chosen_dtype)
    _check_memory(folder, need, config.max_sequence_length, chosen_dtype, chosen_device, say)
    is_demo = folder.resolve() == CHECKPOINT.resolve()
    if not is_demo and (notice := notice_once()):
        say(notice)
    with _memory_errors(folder, chosen_device):
        fill_network(
            network,
            folder,
            examined.tensors,
            dtype=chosen_dtype,
            device=chosen_device,
            prefix=prefix.read() if prefix is not None else {},
            progress=progress,
        )
    network.eval()
    if settings is not None:
        network.generation_config = settings
    return LoadedModel(network, examined.tokenizer, family, folder, is_demo)


def checked_folder(path: str | Path) -> Path:
    """`path`, after making sure that the weights of this local folder can be loaded; its tokenizer is not asked for.

    Raises:
        CheckpointError: names the file and the remedy.
    """
    examine(path, needs_tokenizer=False).raise_first()
    return Path(path)


def _generation_settings(folder: Path) -> GenerationConfig | None:
    """What the folder says of sampling, if it does.

    Raises:
        PointerFileError, DamagedFileError: generation_config.json cannot be used.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return None
    try:
        return GenerationConfig.from_dict(read_json(path))
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} holds a value that cannot be used: {error}.", "Delete this file.") from None


def _network_with_prefix(family: Family, config: Any, prefix: StoredPrefix | None) -> Any:
    """The empty network of `config`, made for `prefix` if there is one."""
    if prefix is not None:
        configure_prefix(config, prefix)
    network = family.empty_network(config)
    if prefix is not None:
        check_prefix_fits(prefix, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    return network


def _ask_for_quantized(folder: Path, config: Any, bits: int) -> None:
    """Make `config` that of a network with packed weights of `bits`."""
    check_bits(bits)
    if config.quantization_bit not in (0, bits):
        raise InvalidRequestError(
            f"{folder} is quantized to {config.quantization_bit} bits already and cannot be quantized to {bits}.",
            "Leave --quantize out, or give the unquantized folder.",
        )
    config.quantization_bit = bits


def _check_memory(
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
    if remark := dtype_remark(dtype, device):
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
    if dtype == torch.float32:
        return "--dtype bf16 halves the memory." if device.type == "cpu" else "--dtype fp16 halves the memory."
    return "Close other programs, or use a machine (or --device) with more memory."


@contextmanager
def _memory_errors(folder: Path, device: torch.device) -> Iterator[None]:
    """Allocation failures of torch, as our error: memory may go to others between the check and the load."""
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
