"""The folder doctor: what keeps a model folder from being loaded, with the file and the remedy of each problem.

Knows: the families (through chatglm.models) and their files. Does not load weights, and asks no network.
"""

from chatglm.checkpoints.validate.findings import Finding, ValidationReport
from chatglm.checkpoints.validate.folder import validate_folder

__all__ = ["Finding", "ValidationReport", "validate_folder"]
