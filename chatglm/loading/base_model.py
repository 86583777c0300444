"""Which base model an adapter was trained on, as training here notes it in the header of the adapter's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from chatglm.checkpoints import read_notes
from chatglm.errors import MismatchError

NUM_VALUES = 16
TOLERANCE = 2.0**-6  # rounding to float16 and then bfloat16 changes a value by less than half of it


def base_fingerprint(network: Any) -> str:
    """JSON of the network's sizes and some values of its final norm, which packed and rounded copies of it share."""
    return json.dumps({"sizes": _sizes(network), "final_norm": [round(value, 5) for value in _norm_values(network)]})


def check_base(kind: str, path: Path, network: Any) -> None:
    """Raise MismatchError if the adapter in `path` notes another base model than this network, which fits by shape."""
    notes = read_notes(path)
    try:
        noted = json.loads(notes["base_fingerprint"])
        sizes, values = list(noted["sizes"]), torch.tensor(noted["final_norm"], dtype=torch.float32)
    except (KeyError, TypeError, ValueError):  # of another program
        return
    ours = torch.tensor(_norm_values(network))
    if sizes != _sizes(network) or values.shape != ours.shape or not _are_close(values, ours):
        raise MismatchError(
            f"The {kind} in {path} was trained on another base model of the same shape.",
            f"Give the base model that it was trained on ({notes.get('base', 'it has no name')}).",
        )


def _sizes(network: Any) -> list[int]:
    spec = network.spec
    return [spec.vocab_size, spec.hidden_size, spec.num_layers, spec.num_heads]


def _norm_values(network: Any) -> list[float]:
    weight = next(network.get_submodule(network.spec.final_norm).parameters(), torch.empty(0)).detach().flatten()
    places = torch.linspace(0, weight.numel() - 1, min(NUM_VALUES, weight.numel())).long()
    return weight[places.to(weight.device)].float().tolist()


def _are_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=TOLERANCE, atol=1e-4)
