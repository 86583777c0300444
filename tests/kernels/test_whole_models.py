"""The demo model and the chat suite with each of the kernels.

Measured on the demo model: relative to the reference's, logits of a prompt differ by 0.3 % with torch's operators
(activations in bfloat16) and 1.3 % with the native ones (activations in int8); replies hardly ever differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from chatglm import kernels
from chatglm.loading import LoadedModel, load
from tests import test_pipeline
from tests.folders import make_folder
from tests.generation import test_chat
from tests.kernels.cases import native

pytestmark = pytest.mark.slow  # the conformance suite does the same with tiny models

PROMPTS = (
    "你好", "你是谁", "晚上睡不着怎么办", "我叫小明", "讲个笑话", "今天天气怎么样", "北京是哪里的首都", "写一首诗",
    "hello", "who are you",
)  # fmt: skip
NEW_TOKENS = 12
LOGIT_BOUNDS = {"exact": 2e-5, "torch": 0.01, "native": 0.03}


@functools.cache
def demo(bits: int) -> LoadedModel:
    native()
    with kernels.use("reference"):
        return load("demo", device="cpu", quantize=bits)


@functools.cache
def reference_tokens(bits: int) -> list[list[int]]:
    """What the reference answers to each prompt, all prompts in one batch."""
    loaded = demo(bits)
    batch = loaded.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with kernels.use("reference"):
        return answers(loaded, batch)


def answers(loaded: LoadedModel, batch: Any) -> list[list[int]]:
    """The greedy tokens of every row, up to the end of the answer."""
    output = loaded.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    end = loaded.model.config.eos_token_id
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def share_of_equal_answers(bits: int, name: str) -> float:
    """Prompts, one by one, whose tokens are the reference's."""
    loaded = demo(bits)
    with kernels.use(name):
        alone = [answers(loaded, loaded.tokenizer([prompt], return_tensors="pt"))[0] for prompt in PROMPTS]
    return sum(ours == theirs for ours, theirs in zip(alone, reference_tokens(bits), strict=True)) / len(PROMPTS)


@pytest.mark.parametrize("bits", [4, 8])
def test_exact_is_the_reference_token_for_token(bits: int) -> None:
    assert share_of_equal_answers(bits, "exact") == 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["native", "torch"])
def test_other_kernels_hardly_change_an_answer(name: str, bits: int) -> None:
    assert share_of_equal_answers(bits, name) >= 0.8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", LOGIT_BOUNDS)
@pytest.mark.parametrize("prompt", ["你好", "晚上睡不着怎么办？ what can I do? " * 5], ids=["short", "long"])
def test_logits_are_within_their_bound(prompt: str, name: str, bits: int) -> None:
    loaded = demo(bits)
    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    logits = {}
    for kernel in ("reference", name):
        with kernels.use(kernel), torch.no_grad():
            logits[kernel] = loaded.model(ids).logits
    difference = (logits[name] - logits["reference"]).norm() / logits["reference"].norm()
    assert float(difference) <= LOGIT_BOUNDS[name]
    assert name == "exact" or difference > 0


# --- the chat suite ---


# The native kernels, and what replaces them; the other two share the code around the products with these.
@pytest.fixture(
    params=["native", "torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("exact", "reference"))]
)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    native()
    with kernels.use(request.param) as name:
        assert name == request.param
        yield name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tiny")
    make_folder(path, "safetensors", dtype=torch.float32, max_sequence_length=600)
    return path


@pytest.fixture
def loaded(backend: str, folder: Any) -> LoadedModel:
    return load(folder, device="cpu", quantize=4)


CHAT_TESTS = [
    test_chat.test_history_is_copied_and_extended,
    test_chat.test_greedy_chat_equals_generate,
    test_chat.test_typed_control_tokens_stay_text,
    test_chat.test_oldest_rounds_are_dropped_and_counted,
    test_chat.test_one_message_that_is_too_long_is_refused_with_its_length,
    test_chat.test_padded_batch_from_the_tokenizer_generates_as_single_prompts,
    test_chat.test_generate_samples_only_candidates,
    functools.partial(test_chat.test_chat_is_the_last_of_stream_chat, parameters={"temperature": 0}),
    functools.partial(test_chat.test_chat_is_the_last_of_stream_chat, parameters={"seed": 3}),
]


@pytest.mark.parametrize("test", CHAT_TESTS, ids=lambda test: getattr(test, "__name__", "stream_chat"))
def test_chat_suite(test: Callable[[LoadedModel], None], loaded: LoadedModel) -> None:
    test(loaded)


PIPELINE_TESTS = [
    test_pipeline.test_stream_and_chat_agree,
    test_pipeline.test_generate_continues_text_without_rounds,
    test_pipeline.test_system_prompt_changes_the_prompt,
    test_pipeline.test_threads_take_turns_and_get_their_own_answers,
    test_pipeline.test_an_abandoned_stream_blocks_nobody,
    test_pipeline.test_astream_equals_stream_and_leaving_cancels,
]


@pytest.mark.parametrize("test", PIPELINE_TESTS, ids=lambda test: test.__name__)
def test_pipeline_suite(test: Callable[[test_pipeline.Pipeline], None], loaded: LoadedModel) -> None:
    with test_pipeline.Pipeline(loaded) as pipe:
        test(pipe)
