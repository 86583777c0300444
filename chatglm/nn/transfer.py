"""Small tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, in the order of the current stream.

    A copy from ordinary memory waits until the device has done all it was given; one from pinned memory does not.
    """
    if device.type != "cuda":
        return tensor.to(device)
    # Pinned memory is not given to anybody else before the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)
