"""`python -m chatglm doctor FOLDER`: this machine, the memory the model needs here, and every problem of the folder."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from chatglm.checkpoints.validate import ValidationReport
from chatglm.cli.parsing import Parser
from chatglm.demo import CHECKPOINT, DEMO_NAME
from chatglm.devices import DTYPE_NAMES, available_memory, choose_device, describe_devices
from chatglm.loading import examine
from chatglm.loading.memory_estimate import count_parameters, kept_tensors, memory_needed, precision_name
from chatglm.sizes import format_bytes

LIBRARIES = ("torch", "transformers", "sentencepiece", "safetensors", "accelerate", "numpy", "triton")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 0 when the folder can be loaded, 1 when it cannot."""
    parser = Parser(prog="python -m chatglm doctor", description="Say what is wrong with a model folder.")
    parser.add_argument("folder", nargs="?", default=DEMO_NAME, help="model folder (default: the embedded demo model)")
    arguments = parser.parse_args(argv)
    folder = CHECKPOINT if arguments.folder == DEMO_NAME else Path(arguments.folder).expanduser()
    report = examine(folder)
    print(
        "\n".join(["Environment", *_indented(environment()), "", "Model", *_indented(memory(report)), report.render()])
    )
    return 0 if report.is_healthy else 1


def environment() -> list[str]:
    """Lines about Python, the libraries and the devices of this machine."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines.append(", ".join(f"{name} {_version(name)}" for name in LIBRARIES))
    return [*lines, *describe_devices()]


def memory(report: ValidationReport) -> list[str]:
    """Lines about the memory that the model takes in each number type, and what is free where it would run."""
    if report.family is None or report.config is None:
        return []
    config, spec = report.config, report.family.spec(report.config)
    network = report.family.empty_network(config)
    tensors = kept_tensors(network, report.tensors).values()
    lines = [f"{report.family.name}, {count_parameters(network, report.tensors):,} parameters"]
    for dtype in DTYPE_NAMES:
        need = memory_needed(tensors, config, spec, dtype)
        weights, cache = format_bytes(need.weights_bytes), format_bytes(need.cache_bytes)
        lines.append(
            f"{precision_name(config, dtype)}: {weights} of weights, {cache} of cache for {spec.context_limit} tokens"
        )
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
