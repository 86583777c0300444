"""`python -m chatglm convert SRC DST` and `python -m chatglm quantize SRC DST`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from chatglm.checkpoints.validate import ValidationReport
from chatglm.cli.parsing import Parser
from chatglm.conversion.calibration import MIN_TOKENS as MIN_CALIBRATION_TOKENS
from chatglm.conversion.calibration import Calibration
from chatglm.conversion.evaluation import MIN_TOKENS as MIN_EVALUATION_TOKENS
from chatglm.conversion.evaluation import evaluate
from chatglm.conversion.folder import convert_folder, examined, quantize_folder
from chatglm.conversion.plan import DEFAULT_BITS, make_plan
from chatglm.conversion.report import REPORT_NAME
from chatglm.conversion.samples import BUNDLED, Sample, read_samples
from chatglm.conversion.writing import check_absent, write_json
from chatglm.devices import choose_device
from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import BITS, GROUP_SIZES
from chatglm.loading.sources import snapshot_of
from chatglm.progress import ProgressBar
from chatglm.quantization.gptq import check_damping
from chatglm.sizes import format_bytes

CALIBRATION_TOKENS = 32768
EVALUATION_TOKENS = 16384
SAME_BITS = -1  # `--embeddings` without a number
QUANTIZE_TEXT = """\
Write a model folder with INT8 or INT4 weights. Nothing is written to SRC; DST appears when it is complete.
The tied embedding of a quantized folder can be packed afterwards: quantize SRC DST --embeddings 8."""
TEXT_NOTE = """\
FILE is UTF-8 text, or a .jsonl file whose lines are {"prompt": ..., "response": ..., "history": [[question, answer]]}
(history is optional). Calibrate with text of the kind that the model will see, and evaluate with other text of that
kind. The bundled conversations are small talk of the demo model."""
NO_TEXT = "No --calibration FILE is given: the bundled small talk is used. Text of your own domain does better."


def convert(argv: Sequence[str] | None = None) -> int:
    """Write a folder as safetensors; returns the exit code."""
    parser = Parser(
        prog="python -m chatglm convert", description="Write a model folder as safetensors (from .bin shards or not)."
    )
    _add_folders(parser)
    arguments = parser.parse_args(argv)
    with ProgressBar(sys.stderr, title="转换 Converting") as bar:
        convert_folder(arguments.source, arguments.target, progress=bar)
    _print_sizes(arguments.source, arguments.target)
    return 0


def quantize(argv: Sequence[str] | None = None) -> int:
    """Write a folder with packed weights; returns the exit code."""
    arguments = _quantize_parser().parse_args(argv)
    # Every bad argument is reported before hours are spent.
    check_absent(arguments.target)
    device = choose_device(arguments.device)
    source = examined(arguments.source)
    plan = make_plan(source, arguments.bits, arguments.group_size, _embedding_bits(source, arguments))
    calibration = _calibration(source, arguments, device)
    samples = _samples(arguments.evaluate, source, EVALUATION_TOKENS, MIN_EVALUATION_TOKENS, arguments.seed)
    with (
        ProgressBar(sys.stderr, title="压缩 Packing") as bar,
        ProgressBar(sys.stderr, title="校准 Calibrating", unit=" layers") as layer_bar,
    ):
        report = quantize_folder(
            source, arguments.target, plan, calibration=calibration, progress=bar, layer_progress=layer_bar
        )
    if samples:
        with ProgressBar(sys.stderr, title="评测 Evaluating", unit=" parts") as bar:
            report.add(evaluate(source, examined(arguments.target), samples, device, bar))
        report.settings["evaluation_text"] = arguments.evaluate.name
        write_json(arguments.target / REPORT_NAME, report.as_json())
    print(report.render())
    _print_sizes(arguments.source, arguments.target)
    return 0


def _quantize_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m chatglm quantize", description=QUANTIZE_TEXT, epilog=TEXT_NOTE,
        formatter=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_folders(parser)
    parser.add_argument("--bits", type=int, choices=BITS, help="per weight of the linear layers (default: 4)")
    parser.add_argument(
        "--group-size", type=int, choices=GROUP_SIZES, default=0,
        help="columns per scale: less error, a little more memory (default: one scale per row, as published)",
    )  # fmt: skip
    parser.add_argument(
        "--embeddings", type=int, choices=BITS, nargs="?", const=SAME_BITS, metavar="4|8",
        help="also pack the tied embedding (and output head); without a number to the bits of the layers",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=("rtn", "gptq"), default="rtn",
        help="rtn rounds each weight to the nearest, as in published folders; gptq rounds to keep the outputs of the "
        "layers for the calibration text: less error, but hours for billions of weights (default: rtn)",
    )  # fmt: skip
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="text for gptq (default: bundled)")
    parser.add_argument(
        "--calibration-tokens", type=int, default=CALIBRATION_TOKENS, metavar="N",
        help=f"tokens of the text to use, sampled with the seed (default: {CALIBRATION_TOKENS})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the text sample (default: 0)")
    parser.add_argument(
        "--damping", type=float, metavar="X",
        help="of gptq, as a fraction of the mean diagonal of its Hessian; raised if that is singular (default: 0.01 to "
        "0.3, more for less text)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", type=Path, metavar="FILE", help="text to measure perplexity and agreement with the source on"
    )
    parser.add_argument("--device", default="cpu", help="where gptq and the evaluation compute (default: cpu)")
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=_folder, metavar="SRC", help="model folder")
    parser.add_argument("target", type=_folder, metavar="DST", help="new folder")


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _embedding_bits(source: ValidationReport, arguments: argparse.Namespace) -> int:
    if arguments.embeddings == SAME_BITS:
        return arguments.bits or source.config.quantization_bit or DEFAULT_BITS
    return arguments.embeddings or 0


def _calibration(source: ValidationReport, arguments: argparse.Namespace, device: torch.device) -> Calibration | None:
    if arguments.method != "gptq":
        if arguments.calibration is not None:
            raise InvalidRequestError("A calibration text is used by GPTQ only.", "Add --method gptq.")
        return None
    if arguments.damping is not None:
        check_damping(arguments.damping)
    path = arguments.calibration
    if path is None:
        print(NO_TEXT, file=sys.stderr)
    samples = _samples(path or BUNDLED, source, arguments.calibration_tokens, MIN_CALIBRATION_TOKENS, arguments.seed)
    note = path.name if path is not None else "bundled conversations"
    return Calibration(samples, arguments.damping, device, {"calibration_text": note, "seed": arguments.seed})


def _samples(path: Path | None, source: ValidationReport, num_tokens: int, min_tokens: int, seed: int) -> list[Sample]:
    return read_samples(path.expanduser(), source, num_tokens, min_tokens, seed) if path is not None else []


def _print_sizes(source: Path, target: Path) -> None:
    print(f"{target}: {format_bytes(_size(target))} (was {format_bytes(_size(snapshot_of(source)))})")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
