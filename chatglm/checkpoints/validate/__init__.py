"""Validation of a model folder: what keeps it from being loaded, with the file and the remedy of each problem."""

from chatglm.checkpoints.validate.examination import validate_folder
from chatglm.checkpoints.validate.findings import Finding, ValidatedFamily, ValidationReport

__all__ = ["Finding", "ValidatedFamily", "ValidationReport", "validate_folder"]
