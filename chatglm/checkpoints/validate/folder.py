"""`examine`: look at every file of a model folder and report every problem, not only the first.

Knows: the order of the questions, and which answers make later questions pointless. Loads no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatglm.checkpoints import (
    StoredTensor,
    WeightFiles,
    check_against_index,
    find_weight_files,
    list_file,
    read_config,
)
from chatglm.checkpoints.validate.expected_weights import (
    check_quantization,
    compare_weights,
    is_prefix_only,
    prefix_only,
)
from chatglm.checkpoints.validate.findings import Finding, ValidationReport
from chatglm.checkpoints.validate.tokenizer_files import compare_vocabulary, make_tokenizer
from chatglm.errors import (
    CheckpointError,
    DamagedFileError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from chatglm.kernels.packing import check_bits, check_group_size
from chatglm.models import FAMILIES, Family, family_of

CONFIG_NAME = "config.json"
DOWNLOAD_REMEDY = (
    "Download the model where there is a network (`hf download zai-org/chatglm-6b --local-dir chatglm-6b`), "
    "copy the folder here and give its path."
)


class _Findings(list[Finding]):
    """Collects errors as findings."""

    def add(self, file: Path, *errors: CheckpointError) -> None:
        self.extend(Finding("error", file, error) for error in errors)

    def attempt(self, file: Path, action: Callable[[], Any]) -> Any:
        """The result of `action`, or None with a finding when it raises."""
        try:
            return action()
        except CheckpointError as error:
            self.add(file, error)
            return None


def validate_folder(
    folder: str | Path, *, needs_tokenizer: bool = True, prefix_elsewhere: bool = False
) -> ValidationReport:
    """Everything that keeps `folder` from being loaded, found without loading any weights.

    Args:
        folder: of the model.
        needs_tokenizer: also examine the tokenizer files.
        prefix_elsewhere: a P-Tuning prefix is given separately, so that one which config.json asks for may be absent.
    """
    folder = Path(folder)
    findings = _Findings()
    absence = _absence(folder)
    if absence is not None:
        findings.add(folder, absence)
        return ValidationReport(folder, tuple(findings))
    keys: dict[str, Any] | None = findings.attempt(folder / CONFIG_NAME, lambda: read_config(folder))
    files: WeightFiles | None = findings.attempt(folder, lambda: find_weight_files(folder))
    tensors, is_complete = _examine_files(files, findings) if files else ({}, False)
    if is_prefix_only(tensors):  # nothing else that such a folder lacks is worth a word
        return ValidationReport(folder, (Finding("error", folder, prefix_only(folder)),), tensors=tensors)
    family: Family | None = (
        findings.attempt(folder / CONFIG_NAME, lambda: family_of(keys)) if keys is not None else None
    )
    config = findings.attempt(folder / CONFIG_NAME, lambda: _config(folder, family, keys or {})) if family else None
    is_understood = family is None or config is not None
    quantized = check_quantization(folder, keys or {}, tensors) if is_understood else None
    if quantized is not None:
        findings.add(folder, quantized)
    elif family is not None and config is not None and is_complete:
        findings.add(folder, *compare_weights(folder, family, config, tensors, prefix_elsewhere=prefix_elsewhere))
    tokenizer = None
    if needs_tokenizer and (family is not None or keys is None):
        # Without a readable config.json the files are those of ChatGLM-6B or of nothing we know.
        family_of_tokenizer = family or FAMILIES[0]
        tokenizer = findings.attempt(folder, lambda: make_tokenizer(folder, family_of_tokenizer))
    if family is not None and config is not None and tokenizer is not None:
        findings.add(folder, *compare_vocabulary(folder, family, tokenizer, config))
    return ValidationReport(folder, tuple(findings), family, config, tensors, tokenizer)


def _absence(folder: Path) -> CheckpointError | None:
    """Why there is no model folder at `folder`, if so."""
    if not folder.exists():
        return ModelNotFoundError(f"There is no folder {folder}.", DOWNLOAD_REMEDY)
    if not folder.is_dir():
        return ModelNotFoundError(f"{folder} is a file, not a model folder.", f"Give the folder: {folder.parent}")
    if (folder / "adapter_config.json").exists() and not (folder / CONFIG_NAME).exists():
        return UnsupportedModelError(
            f"{folder} holds a LoRA adapter of the peft library, not a model.", "Give the folder of its base model."
        )
    inner = sorted(folder.glob(f"*/{CONFIG_NAME}"), key=lambda path: path.stat().st_mtime)
    if inner and not (folder / CONFIG_NAME).exists():  # e.g. an output folder of training with its checkpoint-* folders
        meant = inner[-1].parent
        return ModelNotFoundError(f"{folder} has no {CONFIG_NAME}, but a folder in it has.", f"Did you mean {meant}?")
    return None


def _examine_files(files: WeightFiles, findings: _Findings) -> tuple[dict[str, StoredTensor], bool]:
    """The tensors of the readable weight files, and whether all files were readable."""
    tensors: dict[str, StoredTensor] = {}
    is_complete = True
    for path in files.paths:
        listed = findings.attempt(path, lambda path=path: list_file(path))  # type: ignore[misc]
        is_complete = is_complete and listed is not None
        tensors.update(listed or {})
    if is_complete:
        findings.attempt(files.index or files.paths[0], lambda: check_against_index(files, tensors))
    return tensors, is_complete


def _config(folder: Path, family: Family, keys: dict[str, Any]) -> Any:
    try:
        config = family.config(keys)
    except CheckpointError:
        raise
    except InvalidRequestError as error:
        raise DamagedFileError(f"{folder / CONFIG_NAME}: {error}", "Download this file again.") from None
    except Exception as error:  # the library validates with exceptions of its own, which change between releases
        raise DamagedFileError(
            f"{folder / CONFIG_NAME} holds a value that cannot be used: {error}.", "Download this file again."
        ) from None
    _check_sizes(folder, config)
    return config


def _check_sizes(folder: Path, config: Any) -> None:
    for name in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise DamagedFileError(
                f"{folder / CONFIG_NAME} says {name} {value!r}, which is no size.", "Download this file again."
            )
    if config.hidden_size % config.num_attention_heads:
        raise DamagedFileError(
            f"{folder / CONFIG_NAME}: hidden_size {config.hidden_size} is no multiple of num_attention_heads "
            f"{config.num_attention_heads}.",
            "Download this file again.",
        )
    try:
        _check_packing(config)
    except InvalidRequestError as error:
        raise DamagedFileError(f"{folder / CONFIG_NAME}: {error.problem}", "Download this file again.") from None


def _check_packing(config: Any) -> None:
    """Raise InvalidRequestError when the rows of this network cannot be packed as the configuration says."""
    for num_columns in (config.hidden_size, config.inner_hidden_size):
        if config.quantization_bit:
            check_bits(config.quantization_bit, num_columns)
            check_group_size(config.quantization_group_size, num_columns)
    if config.quantization_embedding_bit:
        check_bits(config.quantization_embedding_bit, config.hidden_size)
