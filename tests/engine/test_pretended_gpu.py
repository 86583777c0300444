"""A step on a GPU that is only pretended: the host reads nothing, no tensor lies elsewhere, shapes are fixed.

Fake tensors raise when their numbers are asked for. Run with torch's operators in the place of the kernels, and with
the kernels' operators, whose place fake tensors take too.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from chatglm.engine.graph_runner import GraphRunner, Kind
from chatglm.generation.batch_sampling import Choice
from chatglm.quantization.kernels import gpu, step
from tests.pretended_gpus import Pretended
from tests.pretended_gpus import pretending as pretending  # a fixture


@pytest.fixture(params=["torch's operators", "kernels"])
def has_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "kernels":
        pytest.importorskip("triton")
        for module in (gpu, step):
            monkeypatch.setattr(module, "is_available", lambda device: device.type == "cuda")
    return request.param == "kernels"


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("choice", list(Choice))
@pytest.mark.parametrize("has_penalty", [False, True])
def test_the_host_reads_nothing_of_a_step(
    bits: int, choice: Choice, has_penalty: bool, has_kernels: bool, pretending: None
) -> None:
    network = Pretended(1, bits, torch.float16).network
    assert network.lies_on_one_gpu
    runner = GraphRunner(network, 8, 4)
    if has_penalty:
        runner._slots.seen = torch.empty(5, network.config.vocab_size, dtype=torch.bool, device="cuda:0")
    for size in runner._sizes:
        runner._step(runner._rows[size], Kind(size, choice, has_penalty))
        assert runner._chosen[size].device == torch.device("cuda:0")


def test_a_step_that_is_read_would_show_it(pretending: None) -> None:
    network = Pretended(1, 0).network
    runner = GraphRunner(network, 8, 4)
    network.lm_head.register_forward_hook(lambda module, args, scores: scores if scores.sum() > 0 else -scores)
    with pytest.raises(DataDependentOutputException):
        runner._step(runner._rows[1], Kind(1, Choice.BEST, False))


def test_a_network_on_two_gpus_has_no_graphs(pretending: None) -> None:
    assert not Pretended(2, 0).network.lies_on_one_gpu
