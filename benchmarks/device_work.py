"""What is asked of a network on a device, and the least that must be moved and computed for it.

Knows: sizes of full and tiny runs, prompts of random ids, bytes and operations of products and attention. Does not
know how long anything takes.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from benchmarks.batching import Letters
from benchmarks.device_model import SIZES_6B, SIZES_TINY
from chatglm.engine.decoder import BatchDecoder
from chatglm.engine.request import Request
from chatglm.generation.config import GenerationConfig

# Bytes moved and operations done.
Part = tuple[float, float]


# Steps before those that are timed: they capture, and fill the pipeline.
WARM_UP_STEPS = 3
# More than any vocabulary has.
NEVER = 10**9
# Ids that the request of the original's way may get.
ORIGINAL_ANSWER = 40


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sizes: of the network's configuration.
        products: rows of activations.
        products_bytes: weights of a product come to this together, by copies, so that none is in a cache when it is
            read again.
        batches: requests of a step.
        contexts: ids of their prompts.
        steps: timed one by one.
        prompts: ids of a prompt that is taken in alone.
        chats: how many, ids of a prompt, ids of an answer.
        mixed: how many, most ids of a prompt and of an answer.
    """

    sizes: dict[str, int]
    products: tuple[int, ...]
    products_bytes: int
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int
    prompts: tuple[int, ...]
    chats: tuple[int, int, int]
    mixed: tuple[int, int, int]

    @property
    def step_answer(self) -> int:
        """Ids that a request of the timed steps may get: one more than there are steps, so that none ends."""
        return WARM_UP_STEPS + self.steps + 1

    def longest(self) -> dict[str, tuple[int, int]]:
        """Ids of prompt and answer of the longest request of each kind."""
        return {
            "step": (max(self.contexts), self.step_answer),
            "prompt": (max(self.prompts), 1),
            "original": (self.contexts[0], ORIGINAL_ANSWER),
            "chats": self.chats[1:],
            "mixed": self.mixed[1:],
        }


FULL = Plan(
    sizes=SIZES_6B,
    products=(1, 8, 64, 256),
    products_bytes=256 << 20,  # the largest caches of cards have 50 to 128 MB
    batches=(1, 8, 64, 256),
    contexts=(128, 512),
    steps=50,
    prompts=(512, 2047),  # and one id of an answer: all the network may have
    chats=(256, 20, 150),
    mixed=(512, 512, 256),
)
TINY = Plan(
    sizes=SIZES_TINY,
    products=(1, 8),
    products_bytes=0,
    batches=(1, 4),
    contexts=(32,),
    steps=5,
    prompts=(64,),
    chats=(4, 10, 12),
    mixed=(6, 40, 16),
)


def prompt_of(network: Any, length: int, seed: int) -> list[int]:
    config = network.config
    ids = random.Random(seed).choices(range(10, config.gmask_token_id - 10), k=length - 2)
    return [*ids, config.gmask_token_id, config.bos_token_id]


def greedy(num_new: int) -> GenerationConfig:
    # An end that is no id never comes, so every answer has its whole length.
    return GenerationConfig(do_sample=False, max_new_tokens=num_new, eos_token_id=NEVER)


def request_of(network: Any, length: int, num_new: int, seed: int = 0) -> Request:
    return Request(BatchDecoder(network), Letters(), prompt_of(network, length, seed), greedy(num_new))


def parts_of_step(network: Any, batch: int, context: float, times: float = 1) -> list[Part]:
    """So many steps: all products, whose weights are read once, and attention to what every request has stored."""
    products, attention = products_of(network, batch, batch), attention_of(network, batch, context)
    # A step reads each cached position for one query.
    attention = (2 * batch * context * bytes_of_position(network), attention[1])
    return [(times * num_bytes, times * operations) for num_bytes, operations in (products, attention)]


def parts_of_prompt(network: Any, length: int) -> list[Part]:
    """All but the last id of a prompt."""
    return [products_of(network, length - 1, 0), attention_of(network, length - 1, length - 1)]


def products_of(network: Any, num_tokens: int, num_scored: int) -> Part:
    """The blocks' products for some ids, and the head for some of them."""
    config, parts = network.config, [network.transformer.layers, *([network.lm_head] if num_scored else [])]
    num_bytes = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    block = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.inner_hidden_size
    head = config.hidden_size * config.vocab_size
    return num_bytes, 2.0 * (num_tokens * config.num_layers * block + num_scored * head)


def attention_of(network: Any, num_tokens: int, context: float) -> Part:
    """Of some ids to `context` positions each, which are read once."""
    config = network.config
    operations = 4.0 * num_tokens * context * config.num_layers * config.hidden_size
    return 2 * context * bytes_of_position(network), operations


def bytes_of_position(network: Any) -> int:
    """Keys, or values, of all layers."""
    item = network.transformer.final_layernorm.weight.element_size()
    return network.config.num_layers * network.config.hidden_size * item
