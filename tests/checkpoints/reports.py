"""What tests ask of validation reports."""

from __future__ import annotations

import re

import pytest

from chatglm.checkpoints.validate import ValidationReport
from chatglm.errors import (
    CheckpointError,
)


def only(report: ValidationReport, kind: type[CheckpointError], *words: str) -> None:
    """The report holds one error, of this kind; its sentence has these words and a remedy."""
    assert [type(finding.error) for finding in report.errors] == [kind], report.render()
    (finding,) = report.errors
    for word in words:
        assert word in f"{finding.problem} {finding.remedy}"
    assert finding.remedy
    with pytest.raises(kind, match=re.escape(finding.problem)):
        report.raise_first()
