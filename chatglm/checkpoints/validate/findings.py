"""What validation found: findings, each with the file, the problem and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from chatglm.checkpoints import StoredTensor
from chatglm.errors import CheckpointError
from chatglm.model_spec import ModelSpec


class ValidatedFamily(Protocol):
    """A family of models, as the registry describes it (`chatglm.models.Family`)."""

    @property
    def name(self) -> str: ...
    def config(self, keys: dict[str, Any]) -> Any: ...
    def spec(self, config: Any) -> ModelSpec: ...
    def empty_network(self, config: Any) -> Any: ...
    def read_tokenizer(self, folder: Path) -> Any: ...


@dataclass(frozen=True)
class Finding:
    """One problem of a file or folder; an "error" keeps the model from loading, and is raised by the loader."""

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
    """The findings, in the order of the checks, and what was read: family, config, tokenizer, None if bad."""

    folder: Path
    findings: tuple[Finding, ...] = ()
    family: ValidatedFamily | None = None
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
        """Raise the first error, if there is one; its message says how to see the others."""
        if self.is_healthy:
            return
        first, *others = (finding.error for finding in self.errors)
        if others:
            more = f"({len(others)} more: python -m chatglm doctor {self.folder})"
            raise type(first)(first.problem, f"{first.remedy} {more}".strip())
        raise first

    def render(self) -> str:
        lines = []
        for finding in self.findings:
            lines += [f"{finding.severity.upper()}: {finding.problem}"]
            lines += [f"  -> {finding.remedy}"] if finding.remedy else []
        verdict = "can be loaded" if self.is_healthy else f"cannot be loaded: {len(self.errors)} problem(s), see above"
        return "\n".join([*lines, f"{self.folder} {verdict}."])
