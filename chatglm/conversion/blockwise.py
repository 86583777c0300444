"""Running a network of which one block at a time is in memory, over samples whose activations are kept instead.

Shapes: T tokens of a sample, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from chatglm.checkpoints import WeightReader
from chatglm.checkpoints.validate import ValidationReport
from chatglm.conversion.samples import Sample
from chatglm.kernels.packing import dequantize
from chatglm.quantization.layers import QuantizedLinear

ROWS_AT_ONCE = 4096  # of the output head


@dataclass
class Activations:
    """A sample on its way: x [1, T, C], and what each block is given besides (positions, visibility, prefix)."""

    x: Tensor
    others: list[tuple[tuple[Any, ...], dict[str, Any]]]


class _Recorder(nn.Module):
    """Takes the place of a block: notes what it is called with and gives back its input."""

    def __init__(self, calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__()
        self._calls = calls

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._calls.append((x, args, kwargs))
        return x


class _AfterBlocks(Exception):
    """Ends a forward pass in front of the final norm."""


class BlockwiseNetwork:
    """The network of a healthy folder in float32, each part read when its turn comes. Use it in a `with` block."""

    def __init__(self, report: ValidationReport, device: torch.device) -> None:
        assert report.family is not None  # a healthy report has one
        self._network = report.family.empty_network(report.config).eval().requires_grad_(False)
        self.spec = self._network.spec
        self._blocks = self._network.get_submodule(self.spec.layers)
        self._stored, self._reader, self.device = report.tensors, WeightReader(report.tensors), device

    @property
    def num_blocks(self) -> int:
        return self.spec.num_layers

    def begin(self, samples: Sequence[Sample]) -> list[Activations]:
        """The samples as they go into the first block."""
        with ExitStack() as stack:
            modules = dict(self._network.named_modules())
            embedding = modules[self.spec.embedding]
            stack.enter_context(self._loaded(embedding, self.spec.embedding, as_stored=True))
            stack.enter_context(embedding.register_forward_hook(lambda module, inputs, output: output.float()))
            if prefix_encoder := modules.get(self.spec.prefix_encoder):
                stack.enter_context(self._loaded(prefix_encoder, self.spec.prefix_encoder))
            stack.enter_context(modules[self.spec.final_norm].register_forward_pre_hook(_stop))
            return [self._embedded(sample) for sample in samples]

    def _embedded(self, sample: Sample) -> Activations:
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []
        self._network.set_submodule(self.spec.layers, nn.ModuleList(_Recorder(calls) for _ in range(self.num_blocks)))
        ids = torch.tensor([sample.input_ids], device=self.device)
        layout, columns = self._network.find_layout(ids), torch.arange(ids.shape[1], device=self.device)
        is_bidirectional = columns < layout.num_bidirectional
        visible = (columns <= columns[:, None]) | (is_bidirectional & is_bidirectional[:, None])
        with suppress(_AfterBlocks):
            self._network.forward_hidden(ids, layout.positions(0, len(columns)), visible[None, None], None)
        return Activations(calls[0][0], [(args, kwargs) for _, args, kwargs in calls])

    @contextmanager
    def block(self, number: int) -> Iterator[nn.Module]:
        """A block, in memory while the `with` block runs; its linear layers are plain ones, whatever is stored."""
        # A copy takes no memory, and keeps the network as it is.
        with self._loaded(deepcopy(self._blocks[number]), f"{self.spec.layers}.{number}") as block:
            _unpack(block)
            yield block

    def packed_layers(self, number: int) -> list[str]:
        """The layers of a block that are stored packed, as they are called in it."""
        return [name for name, layer in self._blocks[number].named_modules() if isinstance(layer, QuantizedLinear)]

    def run(self, number: int, block: nn.Module, sample: Activations) -> Tensor:
        """What the block makes of a sample: [1, T, C]."""
        args, kwargs = sample.others[number]
        return block(sample.x, *args, **kwargs)

    def advance(self, number: int, block: nn.Module, samples: Sequence[Activations]) -> None:
        for sample in samples:
            sample.x = self.run(number, block, sample)

    def finish(self, x_NC: Tensor) -> Tensor:
        name = self.spec.final_norm
        with self._loaded(self._network.get_submodule(name), name) as norm:
            return norm(x_NC)

    def head_rows(self) -> Iterator[Tensor]:
        """The output head, some rows at a time: each float32 [rows, C]."""
        head, name = self._network.get_submodule(self.spec.head), self.spec.head_weight
        weight = self._read(name)
        scale = self._read(f"{name}_scale") if isinstance(head, QuantizedLinear) else None
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = weight[start : start + ROWS_AT_ONCE].to(self.device)
            if scale is None:
                yield rows.float()
            else:
                row_scale = scale[start : start + ROWS_AT_ONCE].to(self.device)
                yield dequantize(rows, row_scale, head.bits, torch.float32)

    def stored_weight(self, name: str) -> Tensor:
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
        if name not in self._stored:  # a tied embedding is stored once
            name = name.replace(self.spec.head, self.spec.embedding)
        return self._reader.read(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.close()


def _stop(module: nn.Module, inputs: tuple[Any, ...]) -> NoReturn:
    raise _AfterBlocks


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
