"""Configuration of ChatGLM-6B (first release and v1.1), under the key names of its published config.json.

Knows: names, defaults and which folders with the same `model_type` belong to a later family.
Does not know: weights, prompts.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from chatglm.errors import InvalidRequestError, UnsupportedModelError
from chatglm.kernels.packing import BITS, GROUP_SIZES

LATER_FAMILY_KEYS = ("padded_vocab_size", "multi_query_attention", "kv_channels")


class ChatGLMConfig(PreTrainedConfig):
    """Sizes and special ids of a ChatGLM-6B network.

    Args:
        vocab_size: V, rows of the embedding (150528 in the first release, 130528 since v1.1).
        hidden_size: C, width of the residual stream.
        num_layers: L.
        num_attention_heads: H; the head width is `hidden_size / num_attention_heads`.
        inner_hidden_size: F, width of the MLP; 0 means `4 * hidden_size`.
        bos_token_id: id of `<sop>`.
        mask_token_id: id of [MASK]; None, as in files of the first release, means four before `<sop>`.
        gmask_token_id: id of [gMASK]; None likewise means three before `<sop>`.
        max_sequence_length: context limit in tokens, prompt and answer together.
        position_encoding_2d: two position rows (true for every published checkpoint) or one.
        quantization_bit: 0, or 4/8 when the folder stores quantized layers.
        quantization_embeddings: whether embedding and lm_head are quantized too, to as many bits (int4-qe folders).
        quantization_embedding_bit: bits of the table that is embedding and lm_head, 0 = not quantized. None means what
            `quantization_embeddings` says. Not a published key.
        quantization_group_size: 32, 64 or 128 columns of a linear layer's weight share a scale; 0, as in every
            published folder, a whole row does. Tables have one scale per row. Not a published key.
        pre_seq_len: P, prefix length of a P-Tuning v2 model; None without a prefix encoder.
        prefix_projection: whether the prefix encoder has its two-layer projection.
        tie_word_embeddings: whether loading ties lm_head to the embedding, if the files hold equal values or only one.

    Raises:
        InvalidRequestError: a key of quantization has a value that means nothing, or two contradict each other.
        UnsupportedModelError: the keys are those of ChatGLM2 or ChatGLM3, which share `model_type` "chatglm".
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    # What several processes have of a layer when they share a network. Query, key and value of a head lie behind one
    # another, so that a share of the rows is a share of the heads. The table is split as the head, which may share it.
    base_model_tp_plan = {
        "word_embeddings": "embedding_rowwise",
        "layers.*.attention.query_key_value": "colwise",
        "layers.*.attention.dense": "rowwise",
        "layers.*.mlp.dense_h_to_4h": "colwise",
        "layers.*.mlp.dense_4h_to_h": "rowwise",
    }
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        vocab_size: int = 130528,
        hidden_size: int = 4096,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        inner_hidden_size: int = 16384,
        layernorm_epsilon: float = 1e-5,
        max_sequence_length: int = 2048,
        position_encoding_2d: bool = True,
        use_cache: bool = True,
        bos_token_id: int = 130004,
        eos_token_id: int = 130005,
        mask_token_id: int | None = None,
        gmask_token_id: int | None = None,
        pad_token_id: int = 3,
        quantization_bit: int = 0,
        quantization_embeddings: bool = False,
        quantization_embedding_bit: int | None = None,
        quantization_group_size: int = 0,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        refuse_later_families(kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.inner_hidden_size = inner_hidden_size or 4 * hidden_size
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.position_encoding_2d = position_encoding_2d
        self.use_cache = use_cache
        self.mask_token_id = bos_token_id - 4 if mask_token_id is None else mask_token_id
        self.gmask_token_id = bos_token_id - 3 if gmask_token_id is None else gmask_token_id
        self.quantization_bit = quantization_bit or 0
        self.quantization_embeddings = bool(quantization_embeddings)
        if quantization_embedding_bit is None:
            quantization_embedding_bit = self.quantization_bit if quantization_embeddings else 0
        self.quantization_embedding_bit = quantization_embedding_bit
        self.quantization_group_size = quantization_group_size or 0
        self._check_quantization()
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)

    def _check_quantization(self) -> None:
        """Raise InvalidRequestError for values that mean nothing or contradict each other."""
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


def refuse_later_families(keys: dict[str, Any]) -> None:
    """Raise UnsupportedModelError when `keys` of a config.json are those of ChatGLM2 or later."""
    found = [key for key in LATER_FAMILY_KEYS if key in keys]
    if found:
        raise UnsupportedModelError(
            f"This is a ChatGLM2 or ChatGLM3 checkpoint (its config.json has `{found[0]}`), not ChatGLM-6B.",
            "This family is not supported yet; use a chatglm-6b folder.",
        )
