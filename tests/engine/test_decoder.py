"""Many requests in one call of the network against each alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from chatglm.engine.decoder import BatchDecoder
from chatglm.nn.batch_invariance import rows_for_invariance
from tests.golden.cases import FLOAT32_BOUND, build

FOLDERS = ("chatglm_v1/main", "chatglm_v1/prefix_embedding", "chatglm_v1/prefix_projection", "chatglm_v1/positions_1d")
LENGTHS = (9, 2, 30, 3)
BFLOAT16_BOUND = 4 * 2**-8  # a few roundings, of the largest logit


def prompts(model: ChatGLMForConditionalGeneration) -> list[Tensor]:
    """Of several lengths, with both mask tokens, and two with the beginning of an answer."""
    config = model.config
    made = []
    for number, length in enumerate(LENGTHS):
        ids = [(7 * number + 3 * n) % 100 + 10 for n in range(length - 2)]
        mask = config.gmask_token_id if number % 2 else config.mask_token_id
        made.append(torch.tensor([[*ids, mask, config.bos_token_id, *[20, 21, 22][: number if number > 1 else 0]]]))
    return made


def start(model: Any, groups: list[list[Tensor]]) -> tuple[list[Any], list[Any]]:
    """Layouts and filled caches; the prompts of a group go into one call."""
    layouts, caches = [], []
    for group in groups:
        of_group = [BatchDecoder(model).prompt_layout(prompt) for prompt in group]
        new = [BatchDecoder(model).new_cache(prompt.shape[1] + 10) for prompt in group]
        BatchDecoder(model).fill_caches(group, of_group, new)
        layouts += of_group
        caches += new
    return layouts, caches


@pytest.mark.parametrize("folder", FOLDERS)
@torch.inference_mode()
def test_together_is_alone_up_to_rounding(folder: str) -> None:
    model = build(folder)
    every = prompts(model)
    layouts, caches = start(model, [every])
    alone_layouts, alone_caches = start(model, [[prompt] for prompt in every])
    last = torch.cat([prompt[:, -1:] for prompt in every])
    for _ in range(4):
        together = BatchDecoder(model).decode(last, layouts, caches)
        alone = torch.cat(
            [
                BatchDecoder(model).decode(last[n : n + 1], [alone_layouts[n]], [alone_caches[n]])
                for n in range(len(every))
            ]
        )
        assert float((together - alone).abs().max()) <= FLOAT32_BOUND * float(alone.abs().max())
        last = alone.argmax(dim=-1, keepdim=True)


@pytest.mark.parametrize("folder", FOLDERS)
@torch.inference_mode()
def test_alone_is_a_pass_over_the_whole_sequence(folder: str) -> None:
    """Not only consistent: the right numbers. `forward` is held to the original's by the golden tests."""
    model = build(folder)
    for prompt in prompts(model):
        layouts, caches = start(model, [[prompt]])
        scores = BatchDecoder(model).decode(prompt[:, -1:], [layouts[0]], [caches[0]])
        whole = model(prompt).logits[:, -1]
        assert float((scores - whole).abs().max()) <= FLOAT32_BOUND * float(whole.abs().max())


@torch.inference_mode()
def test_bfloat16_batch_invariance() -> None:
    """Equal to the bit where a number of rows was measured; within bfloat16 rounding on processors without one."""
    rows = rows_for_invariance(torch.bfloat16, torch.device("cpu"))
    main = build("chatglm_v1/main").config.to_dict()
    sizes = {"hidden_size": 2048, "inner_hidden_size": 4096, "num_layers": 1, "num_attention_heads": 16}
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**main, **sizes})).bfloat16().eval()
    every = prompts(model)
    layouts, caches = start(model, [every])
    alone_layouts, alone_caches = start(model, [[prompt] for prompt in every])
    last = torch.cat([prompt[:, -1:] for prompt in every])
    for _ in range(4):
        together = BatchDecoder(model).decode(last, layouts, caches)
        for n in range(len(every)):
            alone = BatchDecoder(model).decode(last[n : n + 1], [alone_layouts[n]], [alone_caches[n]])
            bound = 0.0 if rows else BFLOAT16_BOUND * float(alone.abs().max())
            assert float((together[n : n + 1] - alone).abs().max()) <= bound
        last = together.argmax(dim=-1, keepdim=True)


@torch.inference_mode()
def test_a_step_that_fails_half_way_leaves_every_cache_as_it_was() -> None:
    model = build("chatglm_v1/main")
    every = prompts(model)
    layouts, caches = start(model, [every])
    _, untouched = start(model, [every])
    last = torch.cat([prompt[:, -1:] for prompt in every])

    def fail(*args: object) -> None:
        raise MemoryError

    hook = model.transformer.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        BatchDecoder(model).decode(last, layouts, caches)
    hook.remove()
    assert torch.equal(
        BatchDecoder(model).decode(last, layouts, caches), BatchDecoder(model).decode(last, layouts, untouched)
    )


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("folder", ["chatglm_v1/main", "chatglm_v1/prefix_embedding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_cache_takes_what_is_said(folder: str, dtype: torch.dtype, bits: int) -> None:
    model = build(folder, dtype)
    if bits:
        model.quantize(bits)
    prompt = prompts(model)[0]
    cache = BatchDecoder(model).new_cache(50)
    BatchDecoder(model).fill_caches([prompt], [BatchDecoder(model).prompt_layout(prompt)], [cache])
    assert cache.num_bytes == BatchDecoder(model).position_bytes * BatchDecoder(model).cache_positions(50)
