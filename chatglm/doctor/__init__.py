"""The folder doctor: what keeps a model folder from being loaded, with the file and the remedy of each problem.

Knows: the families (through chatglm.models) and their files. Does not load weights, and asks no network.
"""

from chatglm.doctor.examination import examine
from chatglm.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
