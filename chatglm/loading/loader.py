"""`load`: find and validate a folder, choose device and type, check memory, fill the network, make the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from chatglm.checkpoints import read_json
from chatglm.checkpoints.validate import ValidationReport
from chatglm.demo import CHECKPOINT
from chatglm.devices import choose_device
from chatglm.errors import DamagedFileError, InvalidRequestError
from chatglm.generation.config import stored_settings
from chatglm.kernels.packing import check_bits
from chatglm.loading.base_model import check_base
from chatglm.loading.fill import NOT_SHARDED, fill_network, mapping_message
from chatglm.loading.lora_checkpoint import StoredLora, attach_lora, check_lora_fits, find_lora
from chatglm.loading.memory_estimate import (
    MemoryEstimate,
    check_memory,
    check_memory_options,
    kept_tensors,
    memory_errors,
    memory_needed,
    type_for,
)
from chatglm.loading.memory_plan import NO_LIMIT, MemoryPlan, plan_blocks, quantizing_in_every_pass
from chatglm.loading.offload import stream_blocks
from chatglm.loading.placement import DeviceMap, Placement, apply_placement, check_num_gpus, plan_placement
from chatglm.loading.prefix_checkpoint import (
    StoredPrefix,
    check_prefix_fits,
    find_prefix,
)
from chatglm.loading.sources import examine, find_folder, licence_notice
from chatglm.loading.tensor_parallel import init_process_group, shard_network
from chatglm.loading.tied_embedding import EMBEDDING_BITS, wants_packed_embedding
from chatglm.models import Family
from chatglm.progress import Progress
from chatglm.quantization.layer_swap import check_packed
from chatglm.sizes import parse_bytes

Report = Callable[[str], object]


def _nothing(*_: object) -> None:
    """Discards a message; ends nothing."""


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode on its device, and the tokenizer of its folder; it cannot compute after `close`."""

    model: Any
    tokenizer: Any
    family: Family
    folder: Path
    is_demo: bool
    close: Callable[[], object] = _nothing


@dataclass(frozen=True)
class _Adapters:
    prefix: StoredPrefix | None
    lora: StoredLora | None


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
    wraps: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
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
        lora_checkpoint: folder of a LoRA adapter trained on this model, as peft writes it. It stays apart from the
            weights.
        mmap: weights that need no conversion are used where they lie in the mapped files: hardly a wait at the start,
            and one copy for all processes. The files must not be changed meanwhile. CPU only.
        max_memory: bytes, or text like "2G", that the weights may take. Layers that do not fit are read from the files
            again for every token. The KV cache of conversations comes on top. CPU only.
        num_gpus: with more than one, the layers are spread over so many GPUs, `device` being the first.
        device_map: part -> number of its GPU, in place of a computed one.
        tensor_parallel: shard the model over the processes that torchrun started: all of them make this call, and then
            the same requests in the same order. Only the first reports.
        wraps: give network and tokenizer as transformers' classes, with `chat`, `generate` and `save_pretrained`; False
            gives the plain ones and does not import transformers.
        progress: called with (bytes read, bytes to read) after each tensor.
        report: called with messages for the user: memory estimate, warnings, licence of the weights.

    Raises:
        CheckpointError: something is wrong with the folder; names the file and the remedy.
        DeviceError: no such device or type, or one that mmap or max_memory does not work on.
        InvalidRequestError: quantize is not 4 or 8, the folder is quantized to another width already, max_memory is no
            size, or options exclude each other.
        OutOfMemoryError: the model cannot fit; carries the numbers.
    """
    report = report or _nothing
    is_spread = num_gpus > 1 or device_map is not None
    ranks = None
    if tensor_parallel:
        ranks = init_process_group(
            device, num_gpus=is_spread, mmap=mmap, max_memory=max_memory, lora_checkpoint=lora_checkpoint
        )
        if ranks.rank:
            report, progress = _nothing, None
    # All that can be wrong with the options is found before a folder is read.
    chosen_device = ranks.device if ranks is not None else choose_device(device)
    limit = parse_bytes(max_memory) if max_memory is not None else None
    check_memory_options(chosen_device, mmap, limit)
    folder = find_folder(model)
    adapters = _Adapters(
        find_prefix(ptuning_checkpoint) if ptuning_checkpoint is not None else None,
        find_lora(lora_checkpoint) if lora_checkpoint is not None else None,
    )
    examined = examine(folder, prefix_elsewhere=adapters.prefix is not None)
    examined.raise_first()
    settings = _generation_settings(folder)
    if quantize is not None:
        _ask_for_quantized(folder, examined.config, quantize, is_limited=limit is not None)
    network = _empty_network(examined, adapters, chosen_device, wraps=wraps)
    shards = shard_network(network, ranks) if ranks is not None else NOT_SHARDED
    kept = kept_tensors(network, examined.tensors).values()
    chosen_dtype = type_for(dtype, chosen_device, kept)
    need, plan, placement = (
        memory_needed(kept, network.config, network.spec, chosen_dtype, chosen_device),
        NO_LIMIT,
        None,
    )
    if limit is not None:
        lora_bytes = adapters.lora.size_bytes(chosen_dtype) if adapters.lora is not None else 0
        plan = plan_blocks(network, folder, examined.tensors, chosen_dtype, limit, adapter_bytes=lora_bytes)
        need = MemoryEstimate(plan.weights_bytes, need.cache_bytes)
    if is_spread:
        placement = plan_placement(network, chosen_dtype, num_gpus, device_map)
    else:
        check_memory(folder, need, network.config, chosen_dtype, chosen_device, report)
    is_demo = folder.resolve() == CHECKPOINT.resolve()
    _report_all(report, plan.message, "" if is_demo else licence_notice())
    with memory_errors(folder, chosen_device):
        filled = fill_network(
            network,
            {name: tensor for name, tensor in examined.tensors.items() if not plan.has(name)},
            dtype=chosen_dtype,
            device=chosen_device,
            prefix=adapters.prefix.read(network.spec) if adapters.prefix is not None else {},
            placement=placement,
            shards=shards,
            is_mapped=mmap,
            is_left_out=plan.has,
            progress=progress,
        )
        if adapters.prefix is not None:
            check_base("P-Tuning prefix", adapters.prefix.files.paths[0], network)
        if adapters.lora is not None:
            check_base("LoRA update", adapters.lora.path, network)
        close = _finish(network, adapters, plan, placement, examined, chosen_dtype)
    _report_all(report, mapping_message(folder, filled) if mmap else "")
    network.stored_defaults = settings
    family = cast(Family, examined.family)
    tokenizer = family.tokenizer_class.from_pretrained(str(folder)) if wraps else examined.tokenizer
    return LoadedModel(network.eval(), tokenizer, family, folder, is_demo, close)


def load_model_on_gpus(
    checkpoint_path: str | os.PathLike[str], num_gpus: int = 2, device_map: DeviceMap | None = None, **kwargs: Any
) -> Any:
    """A model with `.chat(tokenizer, ...)` whose layers lie on several GPUs, in fp16: room for one too large for a GPU.

    Do not call `.half()`, `.cuda()` or `.to()` on the result. `auto_configure_device_map` shows the form of a device
    map; other options are those of `load`.

    Raises:
        DeviceError: there are not so many GPUs here.
        InvalidRequestError: the map does not fit the model.
        CheckpointError, OutOfMemoryError: with the file, or the numbers, and the remedy.
    """
    check_num_gpus(num_gpus)
    options = {"dtype": "fp16", "device": "cuda:0", "num_gpus": num_gpus, "device_map": device_map}
    return load(str(checkpoint_path), **{**options, **kwargs}).model


def _generation_settings(folder: Path) -> dict[str, Any]:
    """What the folder's generation_config.json says, if it has one; raises as `read_json`."""
    path = folder / "generation_config.json"
    try:
        return stored_settings(read_json(path)) if path.exists() else {}
    except InvalidRequestError as error:
        raise DamagedFileError(f"{path} holds a value that cannot be used: {error}.", "Delete this file.") from None


def _ask_for_quantized(folder: Path, config: Any, bits: int, *, is_limited: bool) -> None:
    check_bits(bits)
    if config.quantization_bit not in (0, bits):
        raise InvalidRequestError(
            f"{folder} is quantized to {config.quantization_bit} bits already and cannot be quantized to {bits}.",
            "Leave --quantize out, or give the unquantized folder.",
        )
    if is_limited and not config.quantization_bit:
        raise quantizing_in_every_pass(folder, bits)
    config.quantization_bit = bits


def _empty_network(examined: ValidationReport, adapters: _Adapters, device: torch.device, *, wraps: bool) -> Any:
    """The network of a validated folder on the meta device, with room for a prefix; its adapters fit."""
    config, family = examined.config, cast(Family, examined.family)
    spec = family.spec(config)
    if adapters.prefix is not None:
        config.pre_seq_len, config.prefix_projection = adapters.prefix.pre_seq_len, adapters.prefix.has_projection
        check_prefix_fits(adapters.prefix, spec, config)
    if spec.ties_embedding and wants_packed_embedding(config, spec, examined.tensors, device):
        config.quantization_embedding_bit = EMBEDDING_BITS
    network = family.empty_model(config) if wraps else family.empty_network(config)
    if adapters.lora is not None:
        check_lora_fits(network, adapters.lora)
    return network


def _finish(
    network: Any,
    adapters: _Adapters,
    plan: MemoryPlan,
    placement: Placement | None,
    examined: ValidationReport,
    dtype: torch.dtype,
) -> Callable[[], object]:
    """Make a filled network compute as asked: layers streamed, adapter attached, parts placed. Returns what ends it."""
    check_packed(network)
    close: Callable[[], object] = _nothing
    if plan.streamed:
        close = stream_blocks(network, plan.streamed, examined.tensors, dtype=dtype, num_slots=plan.num_slots)
    if adapters.lora is not None:
        attach_lora(network, adapters.lora, dtype)
    if placement is not None:
        apply_placement(network, placement)
    return close


def _report_all(report: Report, *messages: str) -> None:
    for message in filter(None, messages):
        report(message)
