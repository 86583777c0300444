"""Whether a device runs the Triton kernels: asked once per card, tested on small products before they are used.

Where they fail, the reference is used, with one line in the log. Ask before a CUDA graph is captured: the first answer
waits.
"""

from __future__ import annotations

import logging
import threading

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from chatglm.kernels import dispatch
from chatglm.kernels.packing import dequantize

logger = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)
BOUND = 1e-3

_answers: dict[int, bool] = {}
_lock = threading.Lock()


def is_available(device: torch.device) -> bool:
    """Whether the Triton kernels run here; the first call per card takes seconds. $CHATGLM_KERNEL=reference: False."""
    if device.type != "cuda" or dispatch.is_reference():
        return False
    index = device.index
    if index is None or index not in _answers:
        if torch.version.cuda is None or not torch.cuda.is_available():
            return False
        index = torch.cuda.current_device() if index is None else index
        with _lock:
            if index not in _answers:
                _answers[index] = _is_tried(torch.device("cuda", index))
    return _answers[index]


def _is_tried(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return False
    try:
        with unset_fake_temporarily():
            fault = find_fault(device)
    except ImportError:
        return False
    except Exception as error:  # Triton compiles at the first launch, and fails in many ways
        fault = f"{type(error).__name__}: {str(error)[:200]}"
    if fault:
        logger.warning("The GPU kernels are not used on %s, plain products are: %s", device, fault)
    return not fault


def find_fault(device: torch.device) -> str:
    """What the kernels get wrong on a device, in a few words; "" if nothing."""
    from chatglm.kernels.triton import triton_matmul

    generator = torch.Generator().manual_seed(0)
    for bits in (4, 8):
        weight = torch.arange(256, dtype=torch.uint8).view(torch.int8).repeat(64, 1)
        x = torch.randn(3, 256 * 8 // bits, generator=generator).half()
        scale = torch.rand(64, generator=generator).half() + 0.01
        exact = dequantize(weight, scale, bits, torch.float64)
        result = triton_matmul.linear(x.to(device), weight.to(device), scale.to(device), bits, None, False)
        error = (result.double().cpu() - x.double() @ exact.T).abs()
        if not bool((error <= BOUND * (x.double().abs() @ exact.abs().T)).all()):
            return f"a product with {bits} bits is wrong"
    return ""
