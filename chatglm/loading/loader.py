"""`load`: find, validate_folder, choose device and type, check memory, fill the network, make the tokenizer.

Knows: the order of these steps. Does not know how each is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from chatglm.checkpoints import read_json
from chatglm.checkpoints.validate import ValidationReport, validate_folder
from chatglm.checkpoints.validate.expected_weights import kept_parameters
from chatglm.demo import CHECKPOINT
from chatglm.devices import MemoryEstimate, choose_device
from chatglm.errors import DamagedFileError, InvalidRequestError
from chatglm.kernels.packing import check_bits
from chatglm.loading.fill import NOT_SPLIT, Progress, fill_network, mapping_remark
from chatglm.loading.fingerprint import base_fingerprint
from chatglm.loading.licence import notice_once
from chatglm.loading.lora_checkpoint import attach_lora, check_lora_fits, find_lora
from chatglm.loading.memory import check_memory, check_memory_options, memory_errors, memory_needed, type_for
from chatglm.loading.memory_plan import NO_LIMIT, Plan, plan_blocks, quantizing_in_every_pass
from chatglm.loading.offload import stream_blocks
from chatglm.loading.placement import apply_placement, plan_placement
from chatglm.loading.prefix_checkpoint import (
    StoredPrefix,
    base_remark,
    check_prefix_fits,
    configure_prefix,
    find_prefix,
)
from chatglm.loading.sources import find_folder
from chatglm.loading.tensor_parallel import meet, split
from chatglm.loading.tied_embedding import TABLE_BITS, TABLE_REMARK, wants_packed_table
from chatglm.models import Family
from chatglm.sizes import parse_bytes


def _nothing() -> None:
    """What there is to end for a model that is all in memory."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: the network, in eval mode, on its device.
        tokenizer: the family's tokenizer of the same folder.
        family: which family it is of.
        folder: where it was loaded from.
        is_demo: whether it is the embedded demo model.
        close: ends the reading of layers from the files, if there is any; the network cannot compute after it.
    """

    model: Any
    tokenizer: Any
    family: Family
    folder: Path
    is_demo: bool
    close: Callable[[], object] = _nothing


def load(
    model: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: int | None = None,
    ptuning_checkpoint: str | Path | None = None,
    lora_checkpoint: str | Path | None = None,
    mmap: bool = False,
    max_memory: int | str | None = None,
    num_gpus: int = 1,
    device_map: Mapping[str, int] | None = None,
    tensor_parallel: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer.

    Host memory peaks at the network in its final type and a few megabytes. Nothing stays behind when this raises.

    Args:
        model: None or "demo" for the embedded demo model, a folder, or a hub id.
        device: "auto", "cpu", "cuda", "cuda:n" or "mps".
        dtype: "auto", "fp32", "bf16" or "fp16".
        quantize: 4 or 8 packs the weights of an unquantized folder while they are read; a quantized folder needs
            nothing here.
        ptuning_checkpoint: folder (or file) of a P-Tuning v2 prefix trained on this model.
        lora_checkpoint: folder of a LoRA update trained on this model, as peft writes it. It lies beside the weights.
        mmap: weights that need no conversion are used where they lie in the mapped files: hardly a wait at the start,
            and one copy for all processes. The files must not be changed meanwhile. CPU only.
        max_memory: bytes, or text like "2G", that the weights may take. Layers that do not fit are read from the files
            again for every token. The KV cache of conversations comes on top. CPU only.
        num_gpus: with more than one, the layers are spread over so many GPUs, `device` being the first.
        device_map: part -> number of its GPU, in place of a computed one.
        tensor_parallel: share the model with the other processes that torchrun started: all of them make this call,
            and then the same requests in the same order. Only the first reports.
        progress: called with (bytes read, bytes to read) after each tensor.
        report: called with sentences for the user: memory estimate, remarks, licence of the weights.

    Raises:
        CheckpointError: something is wrong with the folder; names the file and the remedy.
        DeviceError: no such device or type, or one where mmap or max_memory cannot be.
        InvalidRequestError: quantize is not 4 or 8, the folder is quantized to another width already, max_memory is no
            size, or options exclude each other.
        OutOfMemoryError: the model cannot fit; carries the numbers.
    """
    say = report if report is not None else _discard
    ranks = None
    if tensor_parallel:
        several = num_gpus > 1 or device_map is not None
        ranks = meet(device, num_gpus=several, mmap=mmap, max_memory=max_memory, lora_checkpoint=lora_checkpoint)
        if ranks.rank:
            say, progress = _discard, None
    chosen_device = ranks.device if ranks is not None else choose_device(device)  # first: a wrong flag needs no wait
    limit = parse_bytes(max_memory) if max_memory is not None else None
    check_memory_options(chosen_device, mmap, limit)
    folder = find_folder(model)
    prefix = find_prefix(ptuning_checkpoint) if ptuning_checkpoint is not None else None
    lora = find_lora(lora_checkpoint) if lora_checkpoint is not None else None
    examined = validate_folder(folder, prefix_elsewhere=prefix is not None)
    examined.raise_first()
    settings = _generation_settings(folder)
    if quantize is not None:
        _ask_for_quantized(folder, examined.config, quantize, is_limited=limit is not None)
    network = _empty_network(examined, prefix, chosen_device, say)
    if lora is not None:
        check_lora_fits(network, lora)
    parts = split(network, ranks) if ranks is not None else NOT_SPLIT
    parameters = kept_parameters(network, examined.tensors)
    chosen_dtype = type_for(dtype, chosen_device, parameters)
    need, plan = memory_needed(parameters, network.config, chosen_dtype, chosen_device), NO_LIMIT
    if limit is not None:
        num_beside = lora.size_bytes(chosen_dtype) if lora is not None else 0
        plan = plan_blocks(network, folder, examined.tensors, chosen_dtype, limit, num_beside=num_beside)
        need = MemoryEstimate(plan.weights_bytes, need.cache_bytes)
    placement = None
    if num_gpus > 1 or device_map is not None:
        placement = plan_placement(network, chosen_dtype, num_gpus, device_map)
    else:
        check_memory(folder, need, network.config.max_sequence_length, chosen_dtype, chosen_device, say)
    is_demo = folder.resolve() == CHECKPOINT.resolve()
    for remark in (plan.remark, "" if is_demo else notice_once()):
        if remark:
            say(remark)
    with memory_errors(folder, chosen_device):
        filled = fill_network(
            network,
            {name: tensor for name, tensor in examined.tensors.items() if not plan.has(name)},
            dtype=chosen_dtype,
            device=chosen_device,
            prefix=prefix.read() if prefix is not None else {},
            placement=placement,
            parts=parts,
            is_mapped=mmap,
            is_left_out=plan.has,
            progress=progress,
        )
        close = _stream(network, plan, examined, chosen_dtype)
        if lora is not None:
            attach_lora(network, lora, chosen_dtype)
        if placement is not None:
            apply_placement(network, placement)
    if prefix is not None and (remark := base_remark(prefix, base_fingerprint(network))):
        say(remark)
    if mmap and (remark := mapping_remark(folder, filled)):
        say(remark)
    network.eval()
    if settings is not None:
        network.generation_config = settings
    assert examined.family is not None  # a healthy report has one
    return LoadedModel(network, examined.tokenizer, examined.family, folder, is_demo, close)


def _discard(sentence: str) -> None:
    """What is said when nobody listens."""


def checked_folder(path: str | Path) -> Path:
    """`path`, after making sure that the weights of this local folder can be loaded; its tokenizer is not asked for.

    Raises:
        CheckpointError: names the file and the remedy.
    """
    validate_folder(path, needs_tokenizer=False).raise_first()
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


def _empty_network(
    examined: ValidationReport, prefix: StoredPrefix | None, device: torch.device, say: Callable[[str], None]
) -> Any:
    """The network of an examined folder without memory: with room for `prefix`, and with the table as it is kept."""
    family, config = examined.family, examined.config
    assert family is not None  # a healthy report has one
    if prefix is not None:
        configure_prefix(config, prefix)
    if wants_packed_table(config, examined.tensors, device):
        config.quantization_embedding_bit = TABLE_BITS
        say(TABLE_REMARK)
    network = family.empty_network(config)
    if prefix is not None:
        check_prefix_fits(prefix, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    return network


def _stream(network: Any, plan: Plan, examined: ValidationReport, dtype: torch.dtype) -> Callable[[], object]:
    """Let the blocks of `plan` be read as they are needed; what ends that."""
    if not plan.streamed:
        return _nothing
    return stream_blocks(network, plan.streamed, examined.tensors, dtype=dtype, num_slots=plan.num_slots)


def _ask_for_quantized(folder: Path, config: Any, bits: int, *, is_limited: bool) -> None:
    """Make `config` that of a network with packed weights of `bits`."""
    check_bits(bits)
    if config.quantization_bit not in (0, bits):
        raise InvalidRequestError(
            f"{folder} is quantized to {config.quantization_bit} bits already and cannot be quantized to {bits}.",
            "Leave --quantize out, or give the unquantized folder.",
        )
    if is_limited and not config.quantization_bit:
        raise quantizing_in_every_pass(folder, bits)
    config.quantization_bit = bits
