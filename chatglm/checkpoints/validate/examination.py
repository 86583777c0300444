"""`validate_folder`: look at every file of a model folder and report every problem, not only the first."""

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
from chatglm.checkpoints.folder import CONFIG_NAME, folder_error
from chatglm.checkpoints.validate.expected_weights import (
    check_quantization,
    compare_weights,
    is_prefix_only,
    prefix_only,
)
from chatglm.checkpoints.validate.findings import Finding, ValidatedFamily, ValidationReport
from chatglm.checkpoints.validate.tokenizer_files import compare_vocabulary, make_tokenizer
from chatglm.errors import (
    CheckpointError,
    DamagedFileError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from chatglm.kernels.packing import check_bits, check_group_size
from chatglm.model_spec import ModelSpec

DOWNLOAD_AGAIN = "Download this file again."


class _Findings(list[Finding]):
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
    folder: str | Path,
    recognise: Callable[[dict[str, Any], Path], ValidatedFamily],
    *,
    default_family: ValidatedFamily | None = None,
    needs_tokenizer: bool = True,
    prefix_elsewhere: bool = False,
) -> ValidationReport:
    """Everything that keeps `folder` from being loaded, found without loading any weights.

    `recognise` gives the family of a config.json's keys and the folder or raises UnsupportedModelError;
    `default_family` says whose tokenizer files to look for where it cannot be read. With `prefix_elsewhere` the folder
    may lack its prefix.
    """
    folder = Path(folder)
    findings = _Findings()
    absence = _absence(folder)
    if absence is not None:
        findings.add(folder, absence)
        return ValidationReport(folder, tuple(findings))
    path = folder / CONFIG_NAME
    keys: dict[str, Any] | None = findings.attempt(path, lambda: read_config(folder))
    files: WeightFiles | None = findings.attempt(folder, lambda: find_weight_files(folder))
    tensors, is_complete = _examine_files(files, findings) if files else ({}, False)
    if is_prefix_only(tensors):  # whatever else such a folder lacks does not matter
        return ValidationReport(folder, (Finding("error", folder, prefix_only(folder)),), tensors=tensors)
    family: ValidatedFamily | None = (
        findings.attempt(path, lambda: recognise(keys, folder)) if keys is not None else None
    )
    config = findings.attempt(path, lambda: _config(path, family, keys or {})) if family else None
    is_understood = family is None or config is not None
    quantized = check_quantization(folder, keys or {}, tensors) if is_understood else None
    if quantized is not None:
        findings.add(folder, quantized)
    elif family is not None and config is not None and is_complete:
        findings.add(folder, *compare_weights(folder, family, config, tensors, prefix_elsewhere=prefix_elsewhere))
    tokenizer, tokenizer_family = None, family or (default_family if keys is None else None)
    if needs_tokenizer and tokenizer_family is not None:
        tokenizer = findings.attempt(folder, lambda: make_tokenizer(folder, tokenizer_family))
    if family is not None and config is not None and tokenizer is not None:
        findings.add(folder, *compare_vocabulary(folder, family, tokenizer, config))
    return ValidationReport(folder, tuple(findings), family, config, tensors, tokenizer)


def _absence(folder: Path) -> CheckpointError | None:
    if (error := folder_error(folder)) is not None:
        return error
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


def _config(path: Path, family: ValidatedFamily, keys: dict[str, Any]) -> Any:
    try:
        config = family.config(keys)
        spec = family.spec(config)
        _check_sizes(path, spec)
        _check_packing(config, spec)
    except CheckpointError:
        raise
    except InvalidRequestError as error:
        raise DamagedFileError(f"{path}: {error.problem}", DOWNLOAD_AGAIN) from None
    except Exception as error:  # a value of another type fails wherever it is first used
        raise DamagedFileError(f"{path} holds a value that cannot be used: {error}.", DOWNLOAD_AGAIN) from None
    return config


def _check_sizes(path: Path, spec: ModelSpec) -> None:
    for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_width"):
        value = getattr(spec, name)
        if type(value) is not int or value < 1:
            raise DamagedFileError(f"{path} says {name} {value!r}, which is no size.", DOWNLOAD_AGAIN)
    if spec.num_heads % spec.num_kv_heads:
        raise DamagedFileError(
            f"{path}: {spec.num_heads} heads do not divide into {spec.num_kv_heads} groups.", DOWNLOAD_AGAIN
        )
    for linear in spec.linears:
        sizes = [linear.columns, *(rows for _, rows in linear.segments)]
        if any(type(size) is not int or size < 1 for size in sizes) or any(n % linear.num_groups for n in sizes[1:]):
            raise DamagedFileError(
                f"{path}: {linear.name} of {linear.rows} x {linear.columns} does not divide into "
                f"{linear.num_groups} heads.",
                DOWNLOAD_AGAIN,
            )


def _check_packing(config: Any, spec: ModelSpec) -> None:
    """Raise InvalidRequestError when the rows of this network cannot be packed as the configuration says."""
    for num_columns in {linear.columns for linear in spec.linears}:
        if config.quantization_bit:
            check_bits(config.quantization_bit, num_columns)
            check_group_size(config.quantization_group_size, num_columns)
    if config.quantization_embedding_bit:
        check_bits(config.quantization_embedding_bit, spec.hidden_size)
