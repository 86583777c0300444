"""Running a network of which one block at a time is in memory, over samples whose activations are kept instead.

Knows: the parts of the network in their order, how a sample goes through them, where their weights are stored.
Does not know what is done with blocks or activations.
Shapes: T tokens of a sample, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatglm.checkpoints import WeightReader
from chatglm.checkpoints.validate import ValidationReport
from chatglm.checkpoints.validate.expected_weights import EMBEDDING_NAME, HEAD_NAME
from chatglm.conversion.samples import Sample
from chatglm.kernels.packing import dequantize
from chatglm.nn.rotary import head_tables
from chatglm.quantization.layers import QuantizedLinear

BLOCKS = "transformer.layers"
ROWS_AT_ONCE = 4096  # of the output head


@dataclass
class Activations:
    """A sample on its way through the network.

    Attributes:
        x: [1, T, C], what goes into the next part.
        tables: cos and sin of its positions.
        visible: bool [1, 1, T, S].
    """

    x: Tensor
    tables: tuple[Tensor, Tensor]
    visible: Tensor


class BlockwiseNetwork:
    """The network of a folder in float32, its weights read when their part's turn comes. Use it in a `with` block.

    Args:
        report: of a healthy folder.
        device: where it computes.
    """

    def __init__(self, report: ValidationReport, device: torch.device) -> None:
        assert report.family is not None  # a healthy report has one
        self._network = report.family.empty_network(report.config).eval().requires_grad_(False)
        self._stored, self._reader, self.device = report.tensors, WeightReader(report.tensors), device
        self._config = report.config
        self._prefixes: list[Any] = []

    @property
    def num_blocks(self) -> int:
        return len(self._network.transformer.layers)

    def begin(self, samples: Sequence[Sample]) -> list[Activations]:
        """The samples as they go into the first block."""
        transformer = self._network.transformer
        self._prefixes = [None] * self.num_blocks
        if transformer.prefix_encoder is not None:
            with self._loaded(transformer.prefix_encoder, "transformer.prefix_encoder"):
                self._prefixes = transformer.prefix_encoder(1, torch.float32)
        with self._loaded(transformer.word_embeddings, "transformer.word_embeddings", as_stored=True):
            return [self._embedded(sample) for sample in samples]

    def _embedded(self, sample: Sample) -> Activations:
        transformer = self._network.transformer
        ids = torch.tensor([sample.input_ids], device=self.device)
        layout = self._network.prompt_layout(ids)
        visible = layout.visible(0, ids.shape[1])
        if transformer.prefix_encoder is not None:
            visible = F.pad(visible, (self._config.pre_seq_len, 0), value=True)
        tables = head_tables(layout.positions(0, ids.shape[1]), transformer.head_width, torch.float32)
        return Activations(transformer.word_embeddings(ids).float(), tables, visible)

    @contextmanager
    def block(self, number: int) -> Iterator[nn.Module]:
        """A block, in memory while the `with` block runs; its linear layers are plain ones, whatever is stored."""
        # A copy takes no memory, and keeps the network as it is.
        with self._loaded(deepcopy(self._network.transformer.layers[number]), f"{BLOCKS}.{number}") as block:
            _unpack(block)
            yield block

    def packed_layers(self, number: int) -> list[str]:
        """The layers of a block that are stored packed, as they are called in it."""
        layers = self._network.transformer.layers[number].named_modules()
        return [name for name, layer in layers if isinstance(layer, QuantizedLinear)]

    def run(self, number: int, block: nn.Module, sample: Activations) -> Tensor:
        """What the block makes of a sample: [1, T, C]."""
        return block(sample.x, sample.tables, sample.visible, None, self._prefixes[number], None)

    def advance(self, number: int, block: nn.Module, samples: Sequence[Activations]) -> None:
        """Send all samples through the block."""
        for sample in samples:
            sample.x = self.run(number, block, sample)

    def finish(self, x_NC: Tensor) -> Tensor:
        """The final norm."""
        with self._loaded(self._network.transformer.final_layernorm, "transformer.final_layernorm") as norm:
            return norm(x_NC)

    def head_rows(self) -> Iterator[Tensor]:
        """The output head, some rows at a time: each float32 [rows, C]."""
        head = self._network.lm_head
        weight = self._read("lm_head.weight")
        scale = self._read("lm_head.weight_scale") if isinstance(head, QuantizedLinear) else None
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = weight[start : start + ROWS_AT_ONCE].to(self.device)
            if scale is None:
                yield rows.float()
            else:
                row_scale = scale[start : start + ROWS_AT_ONCE].to(self.device)
                yield dequantize(rows, row_scale, head.bits, torch.float32)

    def stored_weight(self, name: str) -> Tensor:
        """A weight as it is stored."""
        return self._read(name).to(self.device)

    @contextmanager
    def _loaded(self, part: nn.Module, path: str, *, as_stored: bool = False) -> Iterator[nn.Module]:
        """Give a part its values, in float32 or `as_stored`, while the `with` block runs."""
        values = {name: self._read(f"{path}.{name}").to(self.device) for name in part.state_dict()}
        if not as_stored:
            values = {name: value.float() if value.is_floating_point() else value for name, value in values.items()}
        part.load_state_dict(values, assign=True)
        del values
        try:
            yield part
        finally:
            part.to("meta")

    def _read(self, name: str) -> Tensor:
        if name not in self._stored and name.startswith("lm_head."):  # one table is stored for both
            name = name.replace(HEAD_NAME, EMBEDDING_NAME)
        return self._reader.read(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.close()


def _unpack(block: nn.Module) -> None:
    """Put plain layers of the same values in the place of packed ones: each is used once per sample."""
    for parent in list(block.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, QuantizedLinear):
                with torch.device("meta"):
                    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
                weight = dequantize(layer.weight, layer.weight_scale, layer.bits, torch.float32)
                plain.weight = nn.Parameter(weight, requires_grad=False)
                plain.register_parameter("bias", layer.bias)
                setattr(parent, name, plain)
