"""What quantizing did to a model: numbers, a table of them, a JSON file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

REPORT_NAME = "quantization_report.json"


@dataclass
class LayerErrors:
    """Relative errors |difference| / |reference| of one packed weight and of its layer's outputs.

    `output` is over the calibration text (`output_if_rounded`: by plain rounding), `held_out_output` over the
    evaluation text; `damping` is GPTQ's.
    """

    name: str
    weight: float
    output: float | None = None
    output_if_rounded: float | None = None
    damping: float | None = None
    held_out_output: float | None = None

    @property
    def kind(self) -> str:
        """The layer's own name, the same in every block."""
        return self.name.removesuffix(".weight").rpartition(".")[2]


@dataclass(frozen=True)
class Evaluation:
    """Two models on one text: `agreement` is the share of positions with the same most probable token.

    `logit_error` = |difference| / |before|; `layers`: weight -> relative error of its layer for the same inputs.
    """

    num_tokens: int
    perplexity_before: float
    perplexity_after: float
    agreement: float
    logit_error: float
    layers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class QuantizationReport:
    """Settings, packed weights in the order of packing, and the evaluation if there was a text for it."""

    settings: dict[str, Any]
    layers: list[LayerErrors] = field(default_factory=list)
    evaluation: Evaluation | None = None

    def add(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        for layer in self.layers:
            layer.held_out_output = evaluation.layers.get(layer.name)

    def as_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            **self.settings,
            "layers": [_known(asdict(layer)) for layer in self.layers],
        }
        if self.evaluation is not None:
            result["evaluation"] = _known({**asdict(self.evaluation), "layers": None})
        return result

    def render(self) -> str:
        """A small table: errors per kind of layer (mean over the blocks), then what they do to the model."""
        columns: list[tuple[str, Callable[[LayerErrors], float | None]]] = [
            ("weight error", lambda layer: layer.weight),
            ("output error", lambda layer: layer.output),
            ("if rounded", lambda layer: layer.output_if_rounded),
            ("held-out output error", lambda layer: layer.held_out_output),
        ]
        columns = [column for column in columns if any(column[1](layer) is not None for layer in self.layers)]
        kinds = list(dict.fromkeys(layer.kind for layer in self.layers))
        rows = [["layer", *(title for title, _ in columns)]]
        for kind in kinds:
            of_kind = [layer for layer in self.layers if layer.kind == kind]
            rows.append([kind, *(_mean(value(layer) for layer in of_kind) for _, value in columns)])
        lines = [f"{row[0]:<18}" + "".join(f"{cell:>23}" for cell in row[1:]) for row in rows]
        return "\n".join([*lines, *self._verdict()])

    def _verdict(self) -> list[str]:
        if self.evaluation is None:
            return []
        found = self.evaluation
        return [
            f"perplexity {found.perplexity_before:.4g} -> {found.perplexity_after:.4g}, same most probable token at "
            f"{found.agreement:.2%} of {found.num_tokens} positions, logits moved by {found.logit_error:.2%}"
        ]


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3%}" if known else "-"


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in values.items()
        if value is not None
    }
