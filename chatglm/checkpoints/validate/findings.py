"""What an examination found: findings, each with the file, the problem and the remedy.

Knows: errors and how to list them. Does not know how they are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chatglm.checkpoints import StoredTensor
from chatglm.errors import CheckpointError
from chatglm.models import Family


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: "error" keeps the model from loading, "warning" does not.
        file: the file (or the folder) it is about.
        error: what a loader raises for it; its sentence names the file.
    """

    severity: Literal["error", "warning"]
    file: Path
    error: CheckpointError

    @property
    def problem(self) -> str:
        return self.error.problem

    @property
    def remedy(self) -> str:
        return self.error.remedy


@dataclass(frozen=True)
class ValidationReport:
    """All that was found in a folder, and what was learnt on the way.

    Attributes:
        folder: what was examined.
        findings: every problem, in the order of the examination.
        family: of the model, when its config.json says so.
        config: the family's configuration object, when it could be made.
        tensors: name -> description of every tensor of the readable weight files.
        tokenizer: of the folder, when it was asked for and could be made.
    """

    folder: Path
    findings: tuple[Finding, ...] = ()
    family: Family | None = None
    config: Any = None
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    tokenizer: Any = None

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def is_healthy(self) -> bool:
        return not self.errors

    def raise_first(self) -> None:
        """Raise the first error, if there is one; the sentence says how to see the others."""
        if self.is_healthy:
            return
        first, *others = (finding.error for finding in self.errors)
        if others:
            more = f"({len(others)} more: python -m chatglm doctor {self.folder})"
            raise type(first)(first.problem, f"{first.remedy} {more}".strip())
        raise first

    def render(self) -> str:
        """The findings as text, one paragraph each, and a verdict."""
        lines = []
        for finding in self.findings:
            lines += [f"{finding.severity.upper()}: {finding.problem}"]
            lines += [f"  -> {finding.remedy}"] if finding.remedy else []
        verdict = "can be loaded" if self.is_healthy else f"cannot be loaded: {len(self.errors)} problem(s), see above"
        return "\n".join([*lines, f"{self.folder} {verdict}."])
