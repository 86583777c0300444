"""Arguments of training: upstream's, our additions, and transformers' Seq2SeqTrainingArguments.

They come as flags, or as one JSON file of the same names. Flags that transformers has dropped since are still taken:
renamed, honoured here, or answered with one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from chatglm.errors import InvalidRequestError, MissingFileError

LORA_TARGET = "query_key_value"


def _unused(default: Any = None) -> Any:
    return field(default=default, metadata={"help": "Accepted and ignored."})


def _explained(default: Any, words: str) -> Any:
    return field(default=default, metadata={"help": words})


@dataclass
class ModelArguments:
    """Which model, and what of it is trained."""

    model_name_or_path: str | None = _explained(None, 'Folder, hub id or "demo" (the default).')
    ptuning_checkpoint: str | None = _explained(None, "Prefix to start from, or to answer with.")
    lora_checkpoint: str | None = _explained(
        None, "LoRA weights to go on with, at their rank and alpha, or to answer with."
    )
    quantization_bit: int | None = _explained(None, "4 or 8: quantize the base while it is read.")
    pre_seq_len: int | None = _explained(None, "P-Tuning v2: number of virtual positions.")
    prefix_projection: bool = _explained(False, "P-Tuning v2: make the prefix by a small network.")
    lora_rank: int | None = _explained(None, "LoRA: rank of the update.")
    lora_alpha: float | None = _explained(None, "LoRA: the update is scaled by alpha / rank; default 2 * rank.")
    lora_dropout: float = _explained(0.0, "LoRA: dropout before the update.")
    lora_target: str | None = _explained(
        None, f"LoRA: names of the layers, separated by commas; default {LORA_TARGET}."
    )
    merge_to: str | None = _explained(None, "LoRA: also write the whole model with the update in it, to a new folder.")
    dtype: str = _explained("auto", "Type of the base: auto, fp32, bf16 or fp16. What is trained is fp32.")
    recompute: str = _explained(
        "auto", "Compute activations twice to save memory: on, off, or auto (for large models)."
    )
    config_name: str | None = _unused()
    tokenizer_name: str | None = _unused()
    cache_dir: str | None = _unused()
    use_fast_tokenizer: bool = _unused(True)
    model_revision: str = _unused("main")
    use_auth_token: bool = _unused(False)
    resize_position_embeddings: bool | None = _unused()


@dataclass
class DataTrainingArguments:
    """Which data, and how it is cut and answered."""

    train_file: str | None = _explained(None, "Rows to train on: .json, .jsonl or .csv.")
    validation_file: str | None = _explained(None, "Rows for --do_eval.")
    test_file: str | None = _explained(None, "Rows for --do_predict.")
    prompt_column: str = _explained("content", "Column of the question.")
    response_column: str = _explained("summary", "Column of the answer.")
    history_column: str | None = _explained(None, "Column of earlier rounds.")
    max_source_length: int = _explained(1024, "Most tokens of the question with its history.")
    max_target_length: int = _explained(128, "Most tokens of the answer.")
    val_max_target_length: int | None = _explained(None, "The same when answering; default --max_target_length.")
    max_train_samples: int | None = _explained(None, "Only the first so many rows.")
    max_eval_samples: int | None = _explained(None, "Only the first so many rows.")
    max_predict_samples: int | None = _explained(None, "Only the first so many rows.")
    num_beams: int | None = _explained(None, "Beams when answering.")
    do_sample: bool = _explained(False, "Sample answers with top_p 0.7 and temperature 0.95 instead of greedily.")
    ignore_pad_token_for_loss: bool = _explained(True, "False: padding is learned too.")
    pad_to_max_length: bool = _explained(False, "Pad every row to the full length instead of the longest in its batch.")
    source_prefix: str = _explained("", "Put in front of every question.")
    forgetting_file: str | None = _explained(
        None, "Questions (JSON lines, column prompt) answered with and without what was trained."
    )
    lang: str | None = _unused()
    dataset_name: str | None = _unused()
    dataset_config_name: str | None = _unused()
    overwrite_cache: bool = _unused(False)
    preprocessing_num_workers: int | None = _unused()
    forced_bos_token: str | None = _unused()


@dataclass(frozen=True)
class Arguments:
    """All arguments of a run.

    Attributes:
        training: steps, rates, folders; transformers' Seq2SeqTrainingArguments.
        overwrite_output_dir: an output folder with checkpoints of another run may be used.
        warnings: a line for each flag that has no effect any more.
    """

    model: ModelArguments
    data: DataTrainingArguments
    training: Any
    overwrite_output_dir: bool
    warnings: tuple[str, ...]

    @property
    def method(self) -> str:
        """What is trained or attached: "ptuning", "lora", "full", or "base" (nothing) when only answering."""
        if self.model.pre_seq_len or self.model.ptuning_checkpoint:
            return "ptuning"
        if self.model.lora_rank or self.model.lora_checkpoint:
            return "lora"
        return "full" if self.training.do_train else "base"


def _same(value: Any) -> Any:
    return value


def _optimizer(value: Any) -> Any:
    return "adamw_torch" if value == "adamw_hf" else value


# Old name -> (name today, what becomes of the value).
RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "evaluation_strategy": ("eval_strategy", _same),
    "no_cuda": ("use_cpu", _same),
    "warmup_ratio": ("warmup_steps", _same),  # a fraction of all steps is taken there
    "per_gpu_train_batch_size": ("per_device_train_batch_size", _same),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", _same),
    "optim": ("optim", _optimizer),
}
OVERWRITE = "overwrite_output_dir"
# Flags without an effect today, and why that is no loss.
DROPPED = {
    "save_safetensors": "weights are always written as safetensors",
    "logging_dir": "TensorBoard logs go to the folder runs in the output folder",
    "half_precision_backend": "PyTorch's own is used",
    "fp16_backend": "PyTorch's own is used",
    "fp16_opt_level": "PyTorch's own mixed precision has no levels",
    "group_by_length": "rows are padded only to the longest of their batch",
    "sharded_ddp": "use --fsdp or --deepspeed",
    "dispatch_batches": "use --accelerator_config",
    "split_batches": "use --accelerator_config",
    "past_index": "this model has no use for it",
    "jit_mode_eval": "transformers has removed it",
    "use_ipex": "transformers has removed it",
    "tpu_num_cores": "transformers has removed it",
    "xpu_backend": "use --ddp_backend",
}


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """The arguments of a command line, or of the one JSON file that it names.

    Raises:
        MissingFileError: there is no such JSON file.
        InvalidRequestError: a value is invalid, or two contradict each other.
        SystemExit: as argparse, for unknown flags and for --help.
    """
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = _flags_of(Path(argv[0]))
    argv, overwrite, warnings = _translate(argv)
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, Seq2SeqTrainingArguments))
    try:
        model, data, training = parser.parse_args_into_dataclasses(argv)
    except (ValueError, ImportError) as error:  # values that transformers rejects
        raise InvalidRequestError(f"The arguments cannot be used: {error}") from None
    arguments = Arguments(model, data, training, overwrite, warnings)
    _check(arguments)
    return arguments


def _flags_of(path: Path) -> list[str]:
    """The same arguments as flags."""
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.", "Give a JSON file of arguments, or flags.")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InvalidRequestError(f"{path} does not hold an object of arguments.")
    flags: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        flags.append(f"--{name}")
        if isinstance(value, list):
            flags += map(str, value)
        else:
            flags.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return flags


def _translate(argv: Sequence[str]) -> tuple[list[str], bool, tuple[str, ...]]:
    """Flags as transformers takes them today, whether the output folder may be overwritten, and warnings."""
    flags: list[str] = []
    warnings: list[str] = []
    overwrite = False
    if find_spec("tensorboard") is not None and not any(name == "report_to" for name, _ in _grouped(argv)):
        flags = ["--report_to", "tensorboard"]
    for name, values in _grouped(argv):
        if name == OVERWRITE:
            overwrite = not values or values[0].lower() in ("1", "true", "yes", "t", "y")
        elif name in DROPPED:
            warnings.append(f"--{name} has no effect: {DROPPED[name]}.")
        elif name in RENAMED:
            new, change = RENAMED[name]
            flags += [f"--{new}", *map(change, values)]
        else:
            flags += [f"--{name}" if name else "", *values] if name else values
    return flags, overwrite, tuple(warnings)


def _grouped(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name of a flag without dashes, the values after it); values before any flag have the name ""."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        is_flag = word.startswith("--") and len(word) > 2
        if is_flag:
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            groups.append(("", [word]))
    return groups


def _check(arguments: Arguments) -> None:
    model, data, training = arguments.model, arguments.data, arguments.training
    if model.merge_to is not None and (model.quantization_bit or not (model.lora_rank or model.lora_checkpoint)):
        raise InvalidRequestError("--merge_to is for LoRA on a base that is not quantized.")
    if model.merge_to is not None and not training.do_train and not model.lora_checkpoint:
        raise InvalidRequestError("--merge_to without --do_train needs --lora_checkpoint.")
    if not (data.train_file or data.validation_file or data.test_file or model.merge_to):
        hint = " A dataset name alone is not enough." if data.dataset_name else ""
        raise InvalidRequestError(f"No data is given.{hint}", "Give --train_file, --validation_file or --test_file.")
    for does, name in (("do_train", "train_file"), ("do_eval", "validation_file"), ("do_predict", "test_file")):
        if getattr(training, does) and not getattr(data, name):
            raise InvalidRequestError(f"--{does} needs --{name}.")
    for name, least in (("max_source_length", 1), ("max_target_length", 2), ("val_max_target_length", 2)):
        value = getattr(data, name)
        if value is not None and value < least:
            raise InvalidRequestError(f"--{name} must be at least {least}, not {value}.")
    is_ptuning = bool(model.pre_seq_len or model.ptuning_checkpoint)
    if is_ptuning and (model.lora_rank or model.lora_checkpoint):
        raise InvalidRequestError("P-Tuning and LoRA cannot be trained together.", "Leave one of them out.")
    if model.prefix_projection and not is_ptuning:
        raise InvalidRequestError("--prefix_projection needs --pre_seq_len.")
    for name in ("pre_seq_len", "lora_rank"):
        value = getattr(model, name)
        if value is not None and value < 1:
            raise InvalidRequestError(f"--{name} must be at least 1, not {value}.")
    if model.recompute not in ("auto", "on", "off"):
        raise InvalidRequestError(f"--recompute is {model.recompute!r}.", "Give auto, on or off.")
    if arguments.method == "full" and training.do_train and model.quantization_bit:
        raise InvalidRequestError(
            "Quantized weights cannot be trained.",
            "Leave --quantization_bit out, or give --pre_seq_len or --lora_rank.",
        )
