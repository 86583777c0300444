"""Writes a folder as safetensors, as it is or with packed weights, holding one shard of it in memory at a time."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from chatglm.checkpoints import StoredTensor, WeightReader, total_bytes
from chatglm.checkpoints.validate import ValidationReport
from chatglm.conversion.calibration import Calibration, calibrated_tensors
from chatglm.conversion.plan import PackingPlan
from chatglm.conversion.report import REPORT_NAME, QuantizationReport
from chatglm.conversion.rounding import rounded_tensors
from chatglm.conversion.writing import SHARD_BYTES, new_folder, write_json, write_other_files, write_weights
from chatglm.errors import InvalidRequestError
from chatglm.loading import examine
from chatglm.progress import Progress


def convert_folder(
    source: Path, target: Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> None:
    """Write the model in `source` to the new folder `target`, at most `shard_bytes` in one file and in memory.

    Raises CheckpointError or ChatGLMError if `source` cannot be used, or `target` exists or cannot be written.
    """
    report = examined(source)
    stored = _stored(report)
    with new_folder(target, total_bytes(stored.values())) as work, WeightReader(stored) as reader:
        write_weights(work, rounded_tensors(reader, stored, None, [], progress=progress), shard_bytes)
        write_other_files(report.folder, work, {})


def quantize_folder(
    report: ValidationReport,
    target: Path,
    plan: PackingPlan,
    *,
    calibration: Calibration | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    layer_progress: Progress | None = None,
) -> QuantizationReport:
    """Write a model to the new folder `target` with packed weights; returns what that did to them.

    `report` is of the source folder, from `examined`. `calibration` rounds the linear layers by their inputs (GPTQ);
    None = to the nearest. `shard_bytes` bounds a file, and memory beside one block and the activations. `progress` gets
    bytes read, `layer_progress` layers calibrated. Raises CheckpointError for a file changed since, InvalidRequestError
    if nothing is left to calibrate or the text gives NaN, ChatGLMError if `target` exists or cannot be written.
    """
    if calibration is not None and not plan.linears:
        raise InvalidRequestError(
            f"The linear layers of {report.folder} are packed already; GPTQ has nothing to do.", "Use --method rtn."
        )
    stored = _stored(report)
    done = QuantizationReport({"method": "rtn" if calibration is None else "gptq", **plan.keys})
    with new_folder(target, plan.target_bytes) as work, WeightReader(stored) as reader:
        apart = set(plan.linears) if calibration is not None else set()
        tensors = rounded_tensors(reader, stored, plan, done.layers, apart, progress)
        if calibration is not None:
            done.settings |= calibration.settings()
            tensors = chain(tensors, calibrated_tensors(report, plan, calibration, done.layers, layer_progress))
        write_weights(work, tensors, shard_bytes)
        write_other_files(report.folder, work, plan.keys)
        write_json(work / REPORT_NAME, done.as_json())
    return done


def examined(source: Path) -> ValidationReport:
    """The validation report of a sound model folder; raises CheckpointError for another."""
    report = examine(source)
    report.raise_first()
    return report


def _stored(report: ValidationReport) -> dict[str, StoredTensor]:
    """The tensors of a folder that mean something: published ones also store buffers that are computed."""
    assert report.family is not None  # a healthy report has one
    ignored = report.family.spec(report.config).ignored_tensors
    return {n: tensor for n, tensor in report.tensors.items() if not any(re.search(one, n) for one in ignored)}
