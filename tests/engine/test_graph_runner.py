"""The runner that keeps everything on the device, on CPU tensors: same code, a replay is a call.

Greedy ids equal those of the same request alone with the plain decode loop; seeded ones do not depend on company.
"""

from __future__ import annotations

import copy
import functools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm import kernels
from chatglm.engine import Engine
from chatglm.engine.block_manager import BLOCK_TOKENS, BlockManager
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.graph_runner import GraphRunner
from chatglm.engine.request import Request
from chatglm.engine.runner import Runner
from chatglm.engine.solo import stream_alone
from chatglm.engine.steps import BATCH_SIZES
from chatglm.errors import ChatGLMError, InvalidLogitsError, InvalidRequestError
from chatglm.generation.config import GenerationConfig
from chatglm.models.chatglm.paged import PagedDecoder
from tests.engine.counting import CountingDecoder, LetterTokenizer
from tests.engine.test_exactness import IdTokenizer
from tests.engine.test_exactness import network as short_network
from tests.lora import attach_lora, random_update

NAMES = ("main", "one_row", "prefix_embedding", "prefix_projection", "int8", "int4")


@pytest.fixture(autouse=True, scope="module")
def plain_kernels() -> Iterator[None]:
    """Small products lose by a second thread, and integer kernels for CPUs keep a cache of their own type."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with kernels.use("reference"):
        yield
    torch.set_num_threads(before)


@functools.cache
def network(name: str) -> Any:
    """That of the same name, with a context of several pages."""
    model = copy.deepcopy(short_network(name))
    model.spec = replace(model.spec, context_limit=400)
    model.config.max_sequence_length = 400
    return model


def ids_of(seeds: list[int], config: Any) -> list[int]:
    """A whole prompt of the family, from any numbers."""
    first, last = config.pad_token_id + 1, config.mask_token_id
    return [*(first + n % (last - first) for n in seeds), config.gmask_token_id, config.bos_token_id]


@functools.cache
def alone(name: str, prompt: tuple[int, ...], config: GenerationConfig) -> str:
    return "".join(delta.text for delta in stream_alone(BatchDecoder(network(name)), IdTokenizer(), prompt, config))


def engine_on(model: Any, **limits: Any) -> Engine:
    return Engine(BatchDecoder(model), IdTokenizer(), uses_graphs=True, **limits)


def answers(model: Any, prompts: list[list[int]], configs: list[GenerationConfig], **limits: Any) -> list[str]:
    one = engine_on(model, **limits)
    handles = [one.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
    texts = [handle.result(60).text for handle in handles]
    stats = one.stats()
    assert stats.blocks_free == stats.blocks_total
    one.close()
    return texts


@pytest.mark.parametrize("name", [pytest.param("demo", marks=pytest.mark.slow), *NAMES])
@settings(max_examples=6, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 150).flatmap(lambda n: st.lists(st.integers(0, 10**6), min_size=n, max_size=n)),
            st.integers(1, 14),
            st.sampled_from([1.0, 1.3]),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=6,
    ),
    max_running=st.sampled_from([1, 3, 6]),
)
def test_greedy_ids_are_those_of_the_plain_loop(name: str, asked: list[Any], max_running: int) -> None:
    model = network(name)
    prompts = [ids_of(words, model.config) for words, *_ in asked]
    configs = [
        GenerationConfig(do_sample=False, max_new_tokens=new, repetition_penalty=penalty, min_new_tokens=least)
        for _, new, penalty, least in asked
    ]
    expected = [alone(name, tuple(prompt), config) for prompt, config in zip(prompts, configs, strict=True)]
    assert answers(model, prompts, configs, max_running=max_running) == expected


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9), st.booleans()), min_size=2, max_size=5))
def test_seeded_ids_do_not_depend_on_company(asked: list[tuple[int, int, bool]]) -> None:
    model = network("main")
    prompts = [ids_of(list(range(length)), model.config) for length, *_ in asked]
    configs = [GenerationConfig(seed=seed, max_new_tokens=9, top_k=50 * narrow) for _, seed, narrow in asked]
    together = answers(model, prompts, configs, max_running=4)
    assert together == [answers(model, [p], [c])[0] for p, c in zip(prompts, configs, strict=True)]
    other = answers(model, prompts[:1], [GenerationConfig(seed=77, temperature=2.0, top_p=1.0, max_new_tokens=9)])
    assert other != together[:1]


def test_requests_without_a_seed_follow_torchs_and_differ() -> None:
    model = network("main")
    prompts, configs = [ids_of([1, 2], model.config)] * 2, [GenerationConfig(temperature=3.0, max_new_tokens=20)] * 2
    torch.manual_seed(5)
    first = answers(model, prompts, configs)
    torch.manual_seed(5)
    assert answers(model, prompts, configs) == first
    assert first[0] != first[1]


def test_requests_that_a_step_cannot_serve_run_beside_the_others() -> None:
    """A logits processor, and an answer that is begun in the prompt."""
    model = network("main")
    prompt, config = ids_of([4, 5, 6], model.config), GenerationConfig(do_sample=False, max_new_tokens=8)
    begun = [*prompt, 30, 31]
    one = engine_on(model)
    handles = [
        one.submit(prompt, config),
        one.submit(prompt, config, processors=[lambda ids, scores: scores.index_fill(1, torch.tensor([40]), 99.0)]),
        one.submit(begun, config),
    ]
    texts = [handle.result(60).text for handle in handles]
    one.close()
    assert texts[0] == alone("main", tuple(prompt), config)
    assert texts[1] == IdTokenizer().surface(40) * 8
    assert texts[2] == alone("main", tuple(begun), config)


@pytest.mark.parametrize("name", ["prefix", "update"])
def test_what_was_trained_beside_the_network_can_be_left_out(name: str) -> None:
    """A P-Tuning prefix, a LoRA update: of some requests of a batch."""
    model, config = network("prefix_embedding"), GenerationConfig(do_sample=False, max_new_tokens=10)
    if name == "update":
        plain_model = copy.deepcopy(network("main"))
        model = attach_lora(plain_model, random_update(plain_model, 0.3))
    prompt = ids_of([1, 2, 3], model.config)
    plain = Engine(BatchDecoder(model), IdTokenizer(), uses_graphs=False)
    expected = [plain.submit(prompt, config, uses_adapter=uses).result(60).text for uses in (True, False, True)]
    plain.close()
    one = engine_on(model)
    handles = [one.submit(prompt, config, uses_adapter=uses) for uses in (True, False, True)]
    assert [handle.result(60).text for handle in handles] == expected
    one.close()
    assert expected[0] != expected[1]


def test_invalid_logits_end_their_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = network("main"), GenerationConfig(do_sample=False, max_new_tokens=6)
    step = PagedDecoder.step

    def broken(self: Any, ids: Any, positions: Any, pages: Any, table: Any, lengths: Any, uses: Any) -> Any:
        """The row whose request has seven positions gets NaN."""
        logits = step(self, ids, positions, pages, table, lengths, uses)
        return torch.where((lengths == 7)[:, None], torch.nan, logits)

    monkeypatch.setattr(PagedDecoder, "step", broken)
    prompts = [ids_of([3], model.config), ids_of(list(range(20)), model.config)]
    one = engine_on(model)
    handles = [one.submit(prompt, config) for prompt in prompts]
    with pytest.raises(InvalidLogitsError):
        handles[0].result(60)
    seen = []
    with pytest.raises(InvalidLogitsError):
        for delta in handles[0]:
            seen.append(delta.text)
    assert len("".join(seen)) == 4
    assert handles[1].result(60).text == alone("main", tuple(prompts[1]), config)
    assert one.stats().blocks_free == one.stats().blocks_total
    one.close()


def test_a_step_that_fails_ends_those_who_took_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = network("main"), GenerationConfig(do_sample=False, max_new_tokens=6)
    prompt = ids_of([3, 4], model.config)
    one = engine_on(model)

    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(PagedDecoder, "step", fail)
        with pytest.raises(Exception, match="Memory ran out"):
            one.submit(prompt, config).result(60)
    assert one.submit(prompt, config).result(60).text == alone("main", tuple(prompt), config)
    one.close()


def test_stop_strings_cancels_and_readers_that_leave_free_their_pages() -> None:
    model = network("main")
    prompt, long = ids_of([8, 9], model.config), GenerationConfig(do_sample=False, max_new_tokens=200)
    whole = alone("main", tuple(prompt), long)
    one = engine_on(model, max_running=4)
    stopped = one.submit(prompt, GenerationConfig(do_sample=False, max_new_tokens=200, stop=(whole[5:7],)))
    cancelled, dropped, late = (one.submit(prompt, long) for _ in range(3))
    next(iter(cancelled))
    cancelled.cancel()
    del dropped
    assert stopped.result(60).text == whole[: whole.index(whole[5:7])]
    assert cancelled.result(60).finish_reason == "cancelled"
    assert late.result(60).text == whole
    give_up = time.monotonic() + 30
    while one.stats().running and time.monotonic() < give_up:
        time.sleep(0.01)
    assert one.stats().blocks_free == one.stats().blocks_total
    again = [one.submit(prompt, long) for _ in range(8)]
    assert [handle.result(60).text for handle in again] == [whole] * 8
    one.close()


def test_many_callers_that_come_wait_and_leave() -> None:
    """From several threads, with fewer slots and pages than would be needed: none gets another one's answer."""
    model, chance = network("main"), random.Random(0)
    work = [(ids_of([n], model.config), chance.randint(1, 30), chance.choice([None, None, 0, 3])) for n in range(32)]
    longest_config = GenerationConfig(do_sample=False, max_new_tokens=30)
    longest = [alone("main", tuple(prompt), longest_config) for prompt, *_ in work]
    one = engine_on(model, max_running=5, max_waiting=200, memory_limit=4 * 64 * BatchDecoder(model).position_bytes)

    def ask(number: int) -> None:
        prompt, num_new, leaves_after = work[number]
        handle = one.submit(prompt, GenerationConfig(do_sample=False, max_new_tokens=num_new))
        text = ""
        for count, delta in enumerate(handle):
            text += delta.text
            if count == leaves_after:
                handle.cancel()
        assert longest[number].startswith(text)
        assert leaves_after is not None or len(text) == num_new

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(ask, number) for number in range(len(work))]:
            done.result(120)
    stats = one.stats()
    assert stats.blocks_free == stats.blocks_total == 4
    assert stats.failed == 0
    one.close()


# --- parts ---


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
