"""Small tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`, in order of the current stream; pinned, so that the copy waits for nothing."""
    if device.type != "cuda":
        return tensor.to(device)
    # Pinned memory is not given to anybody else before the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)
