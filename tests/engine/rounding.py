"""Whether answers in bfloat16 are equal to the bit alone and in a batch on this processor."""

from __future__ import annotations

import pytest
import torch

from chatglm.nn.batch_invariance import rows_for_invariance


def skip_without_even_bfloat16() -> None:
    if rows_for_invariance(torch.bfloat16, torch.device("cpu")) is None:
        pytest.skip("This processor's bfloat16 products round a row differently beside others.")
