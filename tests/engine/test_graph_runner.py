"""The runner that keeps everything on the device, on CPU tensors: same code, a replay is a call.

Greedy ids equal those of the same request alone with the plain decode loop; seeded ones do not depend on company.
"""

from __future__ import annotations

import copy
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm.engine import Engine
from chatglm.engine.decoder import BatchDecoder
from chatglm.errors import InvalidLogitsError
from chatglm.generation.config import GenerationConfig
from chatglm.models.chatglm.paged import PagedDecoder
from tests.engine.graph_cases import NAMES, alone, answers, engine_on, ids_of, network
from tests.engine.test_exactness import IdTokenizer
from tests.lora import attach_lora, random_update

pytestmark = pytest.mark.usefixtures("plain_kernels")


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


@pytest.mark.slow
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


@pytest.mark.slow
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
