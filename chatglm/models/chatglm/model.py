"""ChatGLM-6B as the library and the decode loop see it: network, output head, loss.

Knows: deriving positions and visibility from what a caller gives, `prefill` and `decode` for our loop, what
transformers' `generate` and `from_pretrained` need, which layers are quantized. Does not know: prompts, sampling,
how weights are packed, devices.
Shapes: B rows, T positions of this call, S positions incl. the cache, C model width, V vocabulary.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from chatglm.errors import InvalidRequestError
from chatglm.generation.chat import ChatMixin
from chatglm.generation.sampling import RequireFinite
from chatglm.kernels.packing import check_bits, check_group_size
from chatglm.models.chatglm.batch import BatchMixin
from chatglm.models.chatglm.config import ChatGLMConfig
from chatglm.models.chatglm.fused import cache_dtype, fuse
from chatglm.models.chatglm.network import ChatGLMModel, ChatGLMPreTrainedModel, uses_adapter
from chatglm.models.chatglm.positions import Layout, causal_after, find_layout, some_visible
from chatglm.models.chatglm.stepping import SteppingMixin
from chatglm.models.chatglm.template import encode_chat
from chatglm.models.chatglm.weights import model_spec
from chatglm.nn.kv_cache import AnyCache, KVCache
from chatglm.nn.lora import merged_state, updates_for
from chatglm.quantization.layer_swap import empty_linears, quantize_linears
from chatglm.quantization.layers import QuantizedEmbedding, QuantizedLinear

logger = logging.getLogger(__name__)

# What published int8 and int4 checkpoints hold as integers; embedding and head only if the configuration says so.
QUANTIZED_LAYERS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
EMBEDDING = "transformer.word_embeddings"
HEAD_TENSORS = ("lm_head.weight", "lm_head.weight_scale")


class ChatGLMForConditionalGeneration(ChatMixin, BatchMixin, SteppingMixin, ChatGLMPreTrainedModel, GenerationMixin):
    """The network with its output head; what `AutoModel.from_pretrained` returns for a chatglm-6b folder."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    visibility = "prefix"
    # Set by chatglm.registration: examining a folder belongs to a floor above this one.
    check_folder: ClassVar[Callable[[Any], object] | None] = None
    encode_chat = staticmethod(encode_chat)

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.spec = model_spec(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._expect_quantized()
        self.post_init()
        if self.transformer.prefix_encoder is not None:
            self.requires_grad_(False)
            self.transformer.prefix_encoder.requires_grad_(True)

    def _expect_quantized(self) -> None:
        """Make room for the packed weights of a quantized checkpoint."""
        bits, table_bits = self.config.quantization_bit, self.config.quantization_embedding_bit
        if bits:
            empty_linears(self.transformer.layers, QUANTIZED_LAYERS, bits, self.config.quantization_group_size)
            fuse(self.transformer)
        if table_bits:
            size, width = self.config.vocab_size, self.config.hidden_size
            self.transformer.word_embeddings = QuantizedEmbedding(size, width, table_bits)
            self.lm_head = QuantizedLinear(width, size, table_bits, bias=False)
            self._tied_weights_keys = {name: name.replace("lm_head", EMBEDDING) for name in HEAD_TENSORS}

    def quantize(self, bits: int, empty_init: bool = False, *, group_size: int = 0, **unused: Any) -> Any:
        """Replace the four linear layers of every block by packed ones; returns the model.

        A LoRA update stays beside them as it is.

        Args:
            bits: 4 or 8; 0 leaves the model as it is.
            empty_init: only make room, for weights that are loaded afterwards.
            group_size: 32, 64 or 128 columns share a scale; 0, as upstream, a whole row does.
            **unused: upstream's options for its own kernels, which are not needed.

        Raises:
            InvalidRequestError: bits or group_size is something else, or rows do not divide into such groups.
        """
        if bits == 0:
            return self
        check_bits(bits)
        if self.config.quantization_bit:
            logger.warning("Already quantized to %d bits.", self.config.quantization_bit)
            return self
        for num_columns in (self.config.hidden_size, self.config.inner_hidden_size):
            check_bits(bits, num_columns)  # all layers before any is replaced
            check_group_size(group_size, num_columns)
        replace = empty_linears if empty_init else quantize_linears
        replace(self.transformer.layers, QUANTIZED_LAYERS, bits, group_size)
        fuse(self.transformer)
        self.config.quantization_bit, self.config.quantization_group_size = bits, group_size
        return self

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's, after naming files of a local folder that cannot work.

        Raises:
            CheckpointError: with the file and the remedy, see chatglm.errors.
        """
        is_folder = isinstance(pretrained_model_name_or_path, str | os.PathLike) and os.path.isdir(
            pretrained_model_name_or_path
        )
        if is_folder and cls.check_folder is not None and "state_dict" not in kwargs:
            cls.check_folder(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's; a LoRA update beside the weights is written inside them.

        Raises:
            InvalidRequestError: it lies beside packed weights.
        """
        if len(args) < 2 and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = merged_state(self)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie lm_head to the embedding after loading, if the files hold one of them or two equal ones.

        A network built from a config alone stays untied, as upstream's.
        """
        if missing_keys is not None:
            super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: AnyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], and the loss when labels are given.

        Args:
            input_ids: int64 [B, T]; the whole sequence, or the ids that follow a filled cache.
            attention_mask: [B, S] with 1 = real token (S counts the cache, not the prefix), or upstream's bool
                [B, 1, T, S] with True = hidden. None: a leading run of pad ids counts as padding.
            position_ids: [B, 2, T], or [B, T] with one row. None: derived from `input_ids`; needed with a filled cache.
            past_key_values: a transformers Cache or a KVCache, filled in place.
            inputs_embeds: [B, T, C] in place of `input_ids`; `position_ids` and a 4-D `attention_mask` must be given.
            labels: int64 [B, T], -100 = ignored; shifted here, loss in float32.
            use_cache: make a cache when none is given.
            output_hidden_states: also return the input of every layer and the result of the final norm, each [B, T, C].
            output_attentions: also return the attention probabilities, each [B, H, T, S].
            logits_to_keep: only the last n positions get logits; 0 = all.
            **kwargs: `num_items_in_batch` for the loss.

        Raises:
            InvalidRequestError: positions cannot be derived from what was given.
        """
        if past_key_values is None and use_cache and not self.training:
            past_key_values = DynamicCache(config=self.config)
        position_ids, visible = self._where(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        probabilities: list[Tensor] | None = [] if output_attentions else None
        with nullcontext() if uses_adapter(past_key_values) else updates_for(False):
            hidden_BTC = self.transformer(
                input_ids, position_ids, visible, past_key_values, inputs_embeds, hidden_states, probabilities
            )
            logits = self.lm_head(hidden_BTC[:, -logits_to_keep:] if logits_to_keep else hidden_BTC)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=tuple(hidden_states) if hidden_states is not None else None,
            attentions=tuple(probabilities) if probabilities is not None else None,
        )

    def _where(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: AnyCache | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Position ids and visibility of a call, derived where the caller left them out."""
        num_past = self._num_past(cache)
        visible = None
        if attention_mask is not None and attention_mask.dim() == 4:
            visible, attention_mask = some_visible(~attention_mask.bool()), None
        if position_ids is not None and visible is not None:
            return position_ids, visible
        if position_ids is not None and num_past:
            return position_ids, causal_after(num_past, position_ids, attention_mask)
        if input_ids is None or num_past:
            raise InvalidRequestError(
                "Positions and visibility cannot be derived without the whole input_ids.",
                "Give position_ids with a filled cache; position_ids and a 4-D attention_mask with inputs_embeds.",
            )
        layout = find_layout(input_ids, self.config, attention_mask)
        stop = input_ids.shape[1]
        if position_ids is None:
            position_ids = layout.positions(0, stop)
        return position_ids, layout.visible(0, stop, attention_mask) if visible is None else visible

    def _num_past(self, cache: AnyCache | None) -> int:
        """Real positions in a cache, the prefix not counted."""
        stored = cache.get_seq_length() if cache is not None else 0
        return max(0, int(stored) - self.cache_positions(0, uses_adapter=uses_adapter(cache)))

    def new_cache(self, capacity: int, *, uses_adapter: bool = True) -> KVCache:
        """An empty cache with room for `capacity` tokens (it grows beyond that), with or without the trained prefix.

        It stores half-precision numbers where the native kernels attend (fused.py).
        """
        room = self.cache_positions(capacity, uses_adapter=uses_adapter)
        return KVCache(self.config.num_layers, room, cache_dtype(self.transformer), uses_adapter=uses_adapter)

    def prompt_layout(self, input_ids: Tensor) -> Layout:
        """Positions of a request whose prompt is `input_ids` [B, T], for `prefill` and `decode`.

        Raises:
            InvalidRequestError: a number that is no id of the vocabulary (a GPU would not survive looking it up), or
                ids that are no prompt.
        """
        if not bool(((input_ids >= 0) & (input_ids < self.config.vocab_size)).all()):
            raise InvalidRequestError(
                f"input_ids hold a number that is no token of this model, which has 0 to {self.config.vocab_size - 1}.",
                "Make input_ids with the ChatGLM tokenizer.",
            )
        return find_layout(input_ids, self.config)

    def prefill(self, input_ids: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Scores [1, V] after a prompt [1, T] that ends with `<sop>` (and possibly the start of an answer).

        The context is one pass with no mask, since all of it sees all of it; the last id is the first decode step.
        """
        self.fill_caches([input_ids], [layout], [cache])
        return self.decode(input_ids[:, -1:], layout, cache)

    def decode(self, input_ids: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Scores [1, V] after one more token id [1, 1]."""
        return self.decode_together(input_ids, [layout], [cache])

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the library's; takes the tokenizer's padded [B, 1, T, T] mask too, and refuses NaN and infinite scores.

        Raises:
            InvalidLogitsError: the network produced NaN or infinity.
        """
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            # The last row sees every real token; positions are derived again from ids and pads.
            kwargs["attention_mask"] = (~mask[:, 0, -1].bool()).long()
        kwargs.pop("position_ids", None)
        processors = LogitsProcessorList([RequireFinite(), *(kwargs.pop("logits_processor", None) or ())])
        return super().generate(inputs, *args, logits_processor=processors, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Re-derive the positions from the whole row at each step, whatever the library kept or dropped."""
        layout = find_layout(input_ids, self.config, attention_mask)
        kwargs["position_ids"] = layout.positions(0, input_ids.shape[1])
        return super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
