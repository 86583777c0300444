"""A step on a GPU that is only pretended: the host reads nothing, no tensor lies elsewhere, shapes are fixed.

Fake tensors raise when their numbers are asked for. Run with torch's operators in the place of the kernels, and with
the kernels' operators, whose place fake tensors take too.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from chatglm.engine.block_manager import BlockManager
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.graph_runner import GraphRunner
from chatglm.engine.steps import StepKind
from chatglm.generation import sampling
from chatglm.generation.sampling import SamplingMode
from chatglm.kernels import step
from chatglm.kernels import triton as gpu
from chatglm.nn.lora import LowRankLinear
from tests.pretended_gpus import Pretended
from tests.pretended_gpus import pretending as pretending  # a fixture


@pytest.fixture(params=["torch's operators", "kernels"])
def has_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "kernels":
        pytest.importorskip("triton")
        for module in (gpu, step, sampling):
            monkeypatch.setattr(module, "is_available", lambda device: device.type == "cuda")
    return request.param == "kernels"


@pytest.mark.parametrize(
    ("mode", "has_penalty", "bits"),
    [
        *[(SamplingMode.TOP_K, True, 0), (SamplingMode.FULL, True, 4)],
        pytest.param(SamplingMode.GREEDY, False, 4, marks=pytest.mark.slow),
        pytest.param(SamplingMode.TOP_K, False, 0, marks=pytest.mark.slow),
    ],
)
def test_the_host_reads_nothing_of_a_step(
    bits: int, mode: SamplingMode, has_penalty: bool, has_kernels: bool, pretending: None
) -> None:
    network = Pretended(1, bits, torch.float16).network
    assert network.paged_decoder().lies_on_one_gpu == has_kernels
    runner = GraphRunner(BatchDecoder(network), BlockManager(8), 4)
    if has_penalty:
        runner._steps.slots.seen = torch.empty(5, network.config.vocab_size, dtype=torch.bool, device="cuda:0")
    steps = runner._steps
    for size in steps.sizes:
        kind = StepKind(size, mode, has_penalty, eos_may_be_forbidden=has_penalty)
        steps._logits_of[size] = torch.empty((size, network.config.vocab_size), dtype=torch.float16, device="cuda:0")
        steps.step(steps._rows[size], kind)
        steps._sample(steps._rows[size], steps.slots.numbers_of(steps._rows[size])[0], steps._logits_of[size], kind)
        assert steps._sampled[size].device == torch.device("cuda:0")


def test_a_step_that_is_read_would_show_it(pretending: None) -> None:
    network = Pretended(1, 0).network
    runner = GraphRunner(BatchDecoder(network), BlockManager(8), 4)
    network.lm_head.register_forward_hook(lambda module, args, scores: scores if scores.sum() > 0 else -scores)
    with pytest.raises(DataDependentOutputException):
        runner._steps.step(runner._steps._rows[1], StepKind(1, SamplingMode.GREEDY))


# --- who has graphs ---


@pytest.fixture
def cards_have_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "is_available", lambda device: device.type == "cuda")


def fake(*shape: int, device: str = "cuda:0") -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, device=device), requires_grad=False)


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("has_update", [False, True])
def test_a_whole_network_on_one_gpu_has_graphs(
    bits: int, has_update: bool, cards_have_kernels: None, pretending: None
) -> None:
    network = Pretended(1, bits).network
    attention, width = network.transformer.layers[0].attention, network.config.hidden_size
    if has_update:
        update = LowRankLinear(attention.query_key_value, torch.empty(2, width), torch.empty(3 * width, 2))
        update.down, update.up = fake(2, width), fake(3 * width, 2)
        attention.query_key_value = update
    assert network.paged_decoder().lies_on_one_gpu


def test_a_network_on_two_gpus_has_no_graphs(cards_have_kernels: None, pretending: None) -> None:
    assert not Pretended(2, 0).network.paged_decoder().lies_on_one_gpu
    network = Pretended(1, 0).network
    network.lm_head.weight = fake(*network.lm_head.weight.shape, device="cuda:1")
    assert not network.paged_decoder().lies_on_one_gpu


@pytest.mark.parametrize("split", ["ours", "shares", "distributed tensors"])
def test_a_share_of_a_network_has_no_graphs(
    split: str, cards_have_kernels: None, pretending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has one GPU, whoever has split the network."""
    network = Pretended(1, 0).network
    weight = network.transformer.layers[0].attention.query_key_value.weight
    if split == "ours":
        network.num_ranks = 2
    elif split == "shares":
        network.transformer.layers[0].attention.query_key_value.weight = fake(len(weight) // 2, weight.shape[1])
    else:
        monkeypatch.setattr(weight, "to_local", lambda: weight, raising=False)
    assert not network.paged_decoder().lies_on_one_gpu
