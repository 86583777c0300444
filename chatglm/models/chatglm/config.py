"""Configuration of ChatGLM-6B (first release and v1.1), under the key names of its published config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chatglm.errors import InvalidRequestError
from chatglm.models.network_config import TOKEN_ID, NetworkConfig
from chatglm.schema import FLAG, Rules, number, whole

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id", "pad_token_id")


@dataclass
class ChatGLMNetworkConfig(NetworkConfig):
    """Sizes and special ids of a ChatGLM-6B network.

    V is 150528 in the first release, 130528 since v1.1; `hidden_size` is C, `num_layers` L. `inner_hidden_size` F: 0 =
    4C. `max_sequence_length`: tokens of prompt and answer. `position_encoding_2d`: two position rows (every published
    checkpoint) or one. `bos_token_id` is `<sop>`; `mask_token_id` and `gmask_token_id` None = 4 and 3 before it, as in
    the first release.
    """

    aliases = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }
    # A hundred times the published sizes: a file that says more is damaged or hostile.
    rules: ClassVar[Rules] = {
        "vocab_size": whole(1, 10_000_000),
        "hidden_size": whole(1, 100_000),
        "num_layers": whole(1, 1000),
        "num_attention_heads": whole(1, 2000),
        "inner_hidden_size": whole(1, 1_000_000),
        "layernorm_epsilon": number(0, 1),
        "max_sequence_length": whole(1, 1_000_000),
        "position_encoding_2d": FLAG,
        **dict.fromkeys(SPECIAL_TOKENS, TOKEN_ID),
        **NetworkConfig.rules,
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    bos_token_id: int = 130004
    eos_token_id: int = 130005
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    pad_token_id: int = 3

    def __post_init__(self) -> None:
        self.inner_hidden_size = self.inner_hidden_size or 4 * self.hidden_size
        for name, before in (("mask_token_id", 4), ("gmask_token_id", 3)):
            if getattr(self, name) is None and type(self.bos_token_id) is int:
                setattr(self, name, self.bos_token_id - before)
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise InvalidRequestError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}."
            )
