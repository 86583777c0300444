"""Pretended GPUs: fake tensors know their device and cannot be combined with those of another, or read by the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from chatglm.loading.placement import Placement, part_sizes, place
from chatglm.models import family_of
from chatglm.nn.kv_cache import KVCache
from tests.folders import tiny_config

FAMILY = family_of({"model_type": "chatglm"})


def empty(num_layers: int = 9, **keys: Any) -> Any:
    return FAMILY.empty_network(FAMILY.config(tiny_config(num_layers=num_layers, **keys)))


def view(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    """tensor[key] for whole numbers, slices, None and a leading ellipsis."""
    parts = key if isinstance(key, tuple) else (key,)
    dim = 0
    for part in parts:
        if part is ...:
            dim = tensor.dim() - sum(other is not None for other in parts[1:])
        elif part is None:
            tensor = tensor.unsqueeze(dim)
            dim += 1
        elif isinstance(part, slice):
            size = tensor.shape[dim]
            tensor = torch.ops.aten.slice(tensor, dim, *part.indices(size))
            dim += 1
        else:
            assert type(part) is int
            tensor = tensor.select(dim, part)
    return tensor


class Pretended:
    """A network whose weights lie on so many GPUs that are not there."""

    def __init__(self, num_gpus: int, bits: int, dtype: torch.dtype = torch.float32) -> None:
        self.network = empty(quantization_bit=bits) if bits else empty()
        self.devices = tuple(torch.device("cuda", number) for number in range(num_gpus))
        device_map = place(part_sizes(self.network, torch.float16), [1.0] * num_gpus, self.network.spec)
        self.placement = Placement(device_map, self.devices, self.network.spec)
        for name, parameter in list(self.network.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            stored = dtype if parameter.is_floating_point() else parameter.dtype
            fake = torch.empty(parameter.shape, dtype=stored, device=self.placement.device_of(name))
            setattr(self.network.get_submodule(owner), leaf, torch.nn.Parameter(fake, requires_grad=False))

    def run(self, cache: KVCache) -> torch.Tensor:
        """A prompt and two steps; the last logits."""
        ids = torch.empty((1, 5), dtype=torch.long, device=self.devices[0])
        positions = torch.empty((1, 2, 5), dtype=torch.long, device=self.devices[0])
        for _ in range(3):
            logits = self.network.lm_head(self.network.transformer(ids, positions, None, cache))
            ids, positions = ids[:, -1:], positions[:, :, -1:]
        return logits


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Python's own indexing asks the driver of the device, and so does copy_; any operation in place sees the devices.
    monkeypatch.setattr(FakeTensor, "__getitem__", view)
    monkeypatch.setattr(FakeTensor, "copy_", lambda tensor, value: tensor.mul_(value), raising=False)
    monkeypatch.setattr(FakeTensor, "__setitem__", lambda tensor, key, value: view(tensor, key).mul_(value))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        yield
