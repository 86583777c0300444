"""The two functions of upstream's utils.py.

Knows: their signatures. Does not know how parts are placed (placement.py) or read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from chatglm.errors import InvalidRequestError
from chatglm.loading.loader import load
from chatglm.loading.placement import DeviceMap, part_sizes, place
from chatglm.models import FAMILIES


def load_model_on_gpus(
    checkpoint_path: str | os.PathLike[str],
    num_gpus: int = 2,
    device_map: Mapping[str, int] | None = None,
    **kwargs: Any,
) -> Any:
    """A model whose layers lie on several GPUs, in eval mode and fp16; `.chat(tokenizer, ...)` and all else work.

    It makes room for a model that one GPU cannot hold, and is no faster. Every weight is read straight to its GPU.
    Do not call `.half()`, `.cuda()` or `.to()` on the result.

    Args:
        checkpoint_path: folder, hub id or "demo".
        num_gpus: how many to use, cuda:0 first; with 1 nothing is spread.
        device_map: part -> number of its GPU, in place of a computed one; `auto_configure_device_map` shows the form.
        **kwargs: others of `chatglm.load_pipeline`: dtype, quantize, ptuning_checkpoint, progress, report.

    Raises:
        DeviceError: there are not so many GPUs here.
        InvalidRequestError: the map does not fit the model.
        CheckpointError, OutOfMemoryError: with the file, or the numbers, and the remedy.
    """
    _check_number(num_gpus)
    kwargs.setdefault("dtype", "fp16")
    if num_gpus == 1 and device_map is None:
        return load(str(checkpoint_path), device="cuda:0", **kwargs).model
    return load(str(checkpoint_path), device="cuda:0", num_gpus=num_gpus, device_map=device_map, **kwargs).model


def auto_configure_device_map(num_gpus: int) -> DeviceMap:
    """Even shares of ChatGLM-6B in fp16 for so many GPUs: part -> number of its GPU.

    Embedding, final norm and head lie on the first, which therefore has fewer layers.

    Raises:
        InvalidRequestError: num_gpus is not at least 1.
    """
    _check_number(num_gpus)
    family = FAMILIES[0]
    network = family.empty_network(family.config({}))
    return place(part_sizes(network, torch.float16), [1.0] * num_gpus)


def _check_number(num_gpus: int) -> None:
    if type(num_gpus) is not int or num_gpus < 1:
        raise InvalidRequestError(f"num_gpus is the number of GPUs to use, not {num_gpus!r}.")
