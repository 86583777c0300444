"""Steps of the graph runner one at a time, on CPU tensors: their tensors, their pages, and who gets this runner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatglm.engine import Engine
from chatglm.engine.block_manager import BLOCK_TOKENS, BlockManager
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.graph_runner import GraphRunner
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner
from chatglm.engine.steps import BATCH_SIZES
from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.models.chatglm.paged import PagedDecoder
from tests.engine.counting import CountingDecoder, LetterTokenizer
from tests.engine.graph_cases import NAMES, alone, engine_on, ids_of, network
from tests.engine.test_exactness import IdTokenizer

pytestmark = pytest.mark.usefixtures("plain_kernels")


def request_of(model: Any, length: int, **parameters: Any) -> Request:
    prompt = ids_of(list(range(length)), model.config)
    return Request(BatchDecoder(model), IdTokenizer(), prompt, GenerationConfig(do_sample=False, **parameters))


def runner_on(model: Any, num_blocks: int, max_running: int) -> GraphRunner:
    return GraphRunner(BatchDecoder(model), BlockManager(num_blocks), max_running)


def prefill(runner: GraphRunner, requests: list[Request]) -> None:
    """As the scheduler and the engine do."""
    for request in requests:
        if request not in runner._blocks._owned:
            assert runner._blocks.reserve(request, request.num_positions)
    runner.prefill(requests)


@pytest.mark.parametrize("name", ["demo", *NAMES, "bf16"])
def test_logits_are_those_of_the_plain_path(name: str) -> None:
    """After a prompt and after some ids, whatever the row; bfloat16 rounds sums in another order."""
    model, bound = network(name), 0.03 if name == "bf16" else 1e-5
    decoder = BatchDecoder(model)
    runner = runner_on(model, 60, 3)
    requests = [request_of(model, length, max_new_tokens=6) for length in (66, 1, 30)]
    prefill(runner, requests)
    for _ in range(3):
        on_the_way = runner._pending[1].read() if runner._pending is not None else []
        for number, request in enumerate(requests):
            ids = torch.tensor([[*request.token_ids, *on_the_way[number : number + 1]]])
            with torch.inference_mode():
                plain = decoder.prefill(ids, decoder.prompt_layout(ids), decoder.new_cache(ids.shape[1]))
            assert (runner.logits(request) - plain).norm() <= bound * plain.norm()
        runner.decode(requests)


def run_to_end(runner: GraphRunner, requests: list[Request]) -> None:
    while any(request.finish_reason is None for request in requests):
        runner.decode([request for request in requests if request.finish_reason is None])


def test_tensors_of_a_step_never_move() -> None:
    """What a captured graph would have in it: the same addresses before and after, with more and fewer requests."""
    model = network("main")
    runner = runner_on(model, 60, 5)

    def addresses() -> list[int]:
        slots, pages, steps = runner._steps.slots, runner._steps.pages, runner._steps
        static = [slots.numbers, slots.fractions, slots.tables, *steps._rows.values(), *steps._sampled.values()]
        return [tensor.data_ptr() for tensor in (*static, *pages.keys, *pages.values)]

    before = addresses()
    for lengths in ([3], [70, 1, 20, 5, 9], [2, 2]):
        requests = [request_of(model, length, max_new_tokens=length + 1) for length in lengths]
        prefill(runner, requests)
        run_to_end(runner, requests)
        for request in requests:
            runner._blocks.release(request)
        assert addresses() == before
    assert runner._blocks.free == 60
    assert sorted(runner._free_slots) == [1, 2, 3, 4, 5]


def test_batches_have_a_few_sizes_and_padding_stays_padding() -> None:
    model = network("main")
    runner = runner_on(model, 60, 7)
    assert runner._steps.sizes == [1, 2, 4, 7]
    assert list(BATCH_SIZES) == sorted(set(BATCH_SIZES))
    requests = [request_of(model, 5, max_new_tokens=4) for _ in range(3)]
    prefill(runner, requests)
    run_to_end(runner, requests)
    assert not runner._steps.slots.numbers[0].any()
    assert not runner._steps.slots.tables[0].any()


def test_warming_up_changes_nothing() -> None:
    model = network("main")
    one = engine_on(model, max_running=3)
    one.warm_up()
    prompt, config = ids_of([4, 5], model.config), GenerationConfig(do_sample=False, max_new_tokens=8)
    assert one.submit(prompt, config).result(60).text == alone("main", tuple(prompt), config)
    with pytest.raises(ChatGLMError, match="before the first request"):
        one.warm_up()
    one.close()


def test_no_memory_for_the_pages_means_caches_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("main")

    def fail(self: Any, num_pages: int) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(PagedDecoder, "new_pages", fail)
    one = engine_on(model)
    prompt, config = ids_of([4, 5], model.config), GenerationConfig(do_sample=False, max_new_tokens=8)
    assert one.submit(prompt, config).result(60).text == alone("main", tuple(prompt), config)
    one.close()


def test_requests_of_the_plain_runner_wait_for_room() -> None:
    """Caches of requests that the plain runner serves are no part of the pages: few at a time, and all get served."""
    model = network("main")
    begun, config = [*ids_of([4], model.config), 30], GenerationConfig(do_sample=False, max_new_tokens=60)
    runner = runner_on(model, 16, 8)
    decoder = BatchDecoder(model)
    requests = [Request(decoder, IdTokenizer(), begun, config) for _ in range(5)]
    assert requests[0].num_positions * 2 <= 16 * 64 // 8 < requests[0].num_positions * 3
    prefill(runner, requests)
    assert [request.cache is not None for request in requests] == [True, True, False, False, False]
    requests[0].end("cancelled")
    prefill(runner, requests[2:])
    assert [request.cache is not None for request in requests[2:]] == [True, False, False]
    one = engine_on(model, max_running=8, max_waiting=20)
    handles = [one.submit(begun, config) for _ in range(12)]
    assert {handle.result(60).text for handle in handles} == {alone("main", tuple(begun), config)}
    one.close()


def test_an_id_is_seen_one_step_after_its_own() -> None:
    model = network("main")
    runner, request = runner_on(model, 60, 2), request_of(model, 5, max_new_tokens=3)
    prefill(runner, [request])
    seen = []
    while request.finish_reason is None:
        runner.decode([request])
        seen.append(request.num_generated)
    assert seen == [0, 1, 2, 3]


@given(st.lists(st.integers(1, 6), max_size=30), st.randoms(use_true_random=False))
def test_no_block_has_two_owners(sizes: list[int], random: Any) -> None:
    blocks, owned = BlockManager(20), {}
    for owner, size in enumerate(sizes):
        while not blocks.reserve(owner, size * BLOCK_TOKENS):
            gone = random.choice(list(owned))
            blocks.release(gone)
            del owned[gone]
        owned[owner] = list(blocks.blocks_of(owner))
        pages = [page for some in owned.values() for page in some]
        assert len(set(pages)) == len(pages) == 20 - blocks.free
        assert set(pages) <= set(range(1, 21))


def test_who_gets_which_runner() -> None:
    """On a CPU captured steps have to be asked for; a network without steps is told."""
    assert isinstance(Engine(BatchDecoder(network("main")), IdTokenizer())._runner, Runner)
    assert isinstance(engine_on(network("main"))._runner, GraphRunner)
    with pytest.raises(InvalidRequestError, match="CountingDecoder has no steps"):
        Engine(CountingDecoder(), LetterTokenizer(), uses_graphs=True)
