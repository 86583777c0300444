"""`python -m chatglm doctor FOLDER`: this machine, the memory the model needs here, and every problem of the folder."""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from chatglm.checkpoints.validate.expected_weights import BIT_KEYS, kept_parameters, memory_needed
from chatglm.checkpoints.validate.findings import ValidationReport
from chatglm.checkpoints.validate.folder import validate_folder
from chatglm.demo import CHECKPOINT, DEMO_NAME
from chatglm.devices import (
    DTYPE_NAMES,
    available_memory,
    choose_device,
    describe_devices,
    format_bytes,
)

LIBRARIES = ("torch", "transformers", "sentencepiece", "safetensors", "accelerate", "numpy", "triton")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 0 when the folder can be loaded, 1 when it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m chatglm doctor",
        description="Report what is wrong with a model folder, and what this machine has.",
    )
    parser.add_argument("folder", nargs="?", default=DEMO_NAME, help="model folder (default: the embedded demo model)")
    arguments = parser.parse_args(argv)
    folder = CHECKPOINT if arguments.folder == DEMO_NAME else Path(arguments.folder).expanduser()
    report = validate_folder(folder)
    print(
        "\n".join(["Environment", *_indented(environment()), "", "Model", *_indented(memory(report)), report.render()])
    )
    return 0 if report.is_healthy else 1


def environment() -> list[str]:
    """Lines about Python, the libraries and the devices."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines.append(", ".join(f"{name} {_version(name)}" for name in LIBRARIES))
    return [*lines, *describe_devices()]


def memory(report: ValidationReport) -> list[str]:
    """Lines about the parameters, the memory they take in each dtype, and what is free on the default device."""
    if report.family is None or report.config is None:
        return []
    config = report.config
    parameters = kept_parameters(report.family.empty_network(config), report.tensors)
    unpacked = copy.copy(config)  # a packed byte holds two INT4 parameters
    for key in BIT_KEYS:
        setattr(unpacked, key, 0)
    counted = kept_parameters(report.family.empty_network(unpacked), report.tensors)
    lines = [f"{report.family.name}, {sum(tensor.numel() for tensor in counted):,} parameters"]
    for dtype, name in DTYPE_NAMES.items():
        need = memory_needed(parameters, config, dtype)
        weights, cache = format_bytes(need.weights_bytes), format_bytes(need.cache_bytes)
        lines.append(f"{name}: {weights} of weights, {cache} of cache for {config.max_sequence_length} tokens")
    device = choose_device("auto")
    free = available_memory(device)
    return [*lines, f"{device}: {format_bytes(free) if free is not None else 'an unknown amount of memory'} available"]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(absent)"


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
