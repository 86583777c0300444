"""Configuration of ChatGLM-6B (first release and v1.1), under the key names of its published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from chatglm.errors import InvalidRequestError
from chatglm.kernels.packing import BITS, GROUP_SIZES

# The names that transformers uses for the same things.
ALIASES = {
    "num_hidden_layers": "num_layers",
    "intermediate_size": "inner_hidden_size",
    "max_position_embeddings": "max_sequence_length",
}


@dataclass
class ChatGLMNetworkConfig:
    """Sizes and special ids of a ChatGLM-6B network.

    Attributes:
        vocab_size: V, rows of the embedding (150528 in the first release, 130528 since v1.1).
        hidden_size: C, width of the residual stream.
        num_layers: L.
        num_attention_heads: H; the head width is `hidden_size / num_attention_heads`.
        inner_hidden_size: F, width of the MLP; 0 means `4 * hidden_size`.
        max_sequence_length: context limit in tokens, prompt and answer together.
        position_encoding_2d: two position rows (true for every published checkpoint) or one.
        bos_token_id: id of `<sop>`.
        mask_token_id: id of [MASK]; None, as in files of the first release, means four before `<sop>`.
        gmask_token_id: id of [gMASK]; None likewise means three before `<sop>`.
        quantization_bit: 0, or 4/8 when the folder stores quantized layers.
        quantization_embeddings: whether the tied embedding is quantized too, to as many bits (int4-qe folders).
        quantization_embedding_bit: bits of the tied embedding, 0 = not quantized; None means what
            `quantization_embeddings` says. Not a published key.
        quantization_group_size: 32, 64 or 128 columns of a linear layer's weight share a scale; 0, as in every
            published folder, a whole row does. Not a published key.
        pre_seq_len: P, prefix length of a P-Tuning v2 model; None without a prefix encoder.
        prefix_projection: whether the prefix encoder has its two-layer projection.
        tie_word_embeddings: whether loading ties lm_head to the embedding, if the files hold equal values or only one.

    Raises:
        InvalidRequestError: a value is no size, means nothing, or contradicts another.
    """

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int = 130004
    eos_token_id: int = 130005
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    pad_token_id: int = 3
    quantization_bit: int = 0
    quantization_embeddings: bool = False
    quantization_embedding_bit: int | None = None
    quantization_group_size: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        self.inner_hidden_size = self.inner_hidden_size or 4 * self.hidden_size
        if self.mask_token_id is None:
            self.mask_token_id = self.bos_token_id - 4
        if self.gmask_token_id is None:
            self.gmask_token_id = self.bos_token_id - 3
        self.quantization_bit = self.quantization_bit or 0
        self.quantization_embeddings = bool(self.quantization_embeddings)
        if self.quantization_embedding_bit is None:
            self.quantization_embedding_bit = self.quantization_bit if self.quantization_embeddings else 0
        self.quantization_group_size = self.quantization_group_size or 0
        self._check_sizes()
        self._check_quantization()

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> Self:
        """From the content of a config.json; keys that are not of the network are ignored."""
        named = {ALIASES.get(name, name): value for name, value in keys.items()}
        return cls(**{field.name: named[field.name] for field in fields(cls) if field.name in named})

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidRequestError(f"{name} is {value!r}, which is no size.")
        if self.hidden_size % self.num_attention_heads:
            raise InvalidRequestError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}."
            )

    def _check_quantization(self) -> None:
        allowed = {
            "quantization_bit": (0, *BITS),
            "quantization_embedding_bit": (0, *BITS),
            "quantization_group_size": (0, *GROUP_SIZES),
        }
        for key, values in allowed.items():
            value = getattr(self, key)
            if type(value) is not int or value not in values:
                choices = f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
                raise InvalidRequestError(f"{key} is {choices}, not {value!r}.")
        if self.quantization_embeddings and self.quantization_embedding_bit != self.quantization_bit:
            raise InvalidRequestError(
                f"quantization_embeddings means {self.quantization_bit} bits for embedding and lm_head, "
                f"but quantization_embedding_bit says {self.quantization_embedding_bit}.",
                "Leave one of the two out.",
            )
