"""The ChatGLM-6B network.

Knows: embedding, 28 blocks, final norm, output head, loss, and the two calls a decode loop makes (`prefill`, `decode`).
Does not know: prompts, sampling, stopping, quantization, devices.

What sets it apart from its successors: post-norm in effect (the residual branch starts from the *normalised* input,
multiplied by a constant), plain GELU MLP, per-head interleaved q|k|v, two rotary positions, a bidirectional prompt.
Inside, tensors are batch first; the original is sequence first. Tensor names are those of the published files.
Shapes: B rows, T positions of this call, S positions incl. the cache, H heads, D head width, C model width, F MLP width,
V vocabulary, L layers, P prefix length.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from chatglm.errors import InvalidRequestError, UnsupportedModelError
from chatglm.generation.chat import ChatMixin
from chatglm.generation.sampling import RequireFinite
from chatglm.models.chatglm.configuration_chatglm import ChatGLMConfig
from chatglm.models.chatglm.layout import Layout, find_layout
from chatglm.models.chatglm.template import encode_chat
from chatglm.nn.attention import attend, attend_with_probabilities
from chatglm.nn.kv_cache import KVCache, concatenated
from chatglm.nn.prefix_encoder import PrefixEncoder
from chatglm.nn.rotary import head_tables, rotate

# sqrt(2L) with L = 28 at any depth: upstream never passes the real depth, and published weights depend on it.
RESIDUAL_SCALE = math.sqrt(2 * 28)

AnyCache = Cache | KVCache
Pair = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """q|k|v interleaved per head, two-part rotary, output projection."""

    def __init__(self, config: ChatGLMConfig, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.head_width = config.hidden_size // config.num_attention_heads
        self.num_parts = 2 if config.position_encoding_2d else 1
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x_BTC: Tensor, tables: Pair, visible: Tensor | None, cache: AnyCache | None, prefix: Pair | None,
        probabilities: list[Tensor] | None,
    ) -> Tensor:
        # [B, T, 3C] -> [B, H, T, 3D]; -1 heads, so that a tensor-parallel rank may hold only some of them.
        fused = self.query_key_value(x_BTC).unflatten(-1, (-1, 3 * self.head_width)).transpose(1, 2)
        query, key, value = fused.chunk(3, dim=-1)
        query, key = rotate(query, tables, self.num_parts), rotate(key, tables, self.num_parts)
        if prefix is not None:
            key, value = concatenated(prefix, key, value)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_id)
        if probabilities is None:
            mixed = attend(query, key, value, visible)
        else:
            mixed, weights = attend_with_probabilities(query, key, value, visible)
            probabilities.append(weights)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class GLU(nn.Module):
    """The MLP: dense_4h_to_h(gelu_tanh(dense_h_to_4h(x))). Upstream's class name; nothing in it is gated."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x_BTC), approximate="tanh"))


class GLMBlock(GradientCheckpointingLayer):
    """a = LN1(x); y = scale * a + attention(a); m = LN2(y); result = scale * m + MLP(m)."""

    def __init__(self, config: ChatGLMConfig, layer_id: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_id)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(
        self, x_BTC: Tensor, tables: Pair, visible: Tensor | None, cache: AnyCache | None = None,
        prefix: Pair | None = None, probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        a = self.input_layernorm(x_BTC)
        y = RESIDUAL_SCALE * a + self.attention(a, tables, visible, cache, prefix, probabilities)
        m = self.post_attention_layernorm(y)
        return RESIDUAL_SCALE * m + self.mlp(m)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What the library must know about any model of the family."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ("GLMBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    # Published files store these; they are computed here (see nn/rotary.py).
    _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq",)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Token ids to hidden states. Everything about positions and visibility is given by the caller."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.head_width = config.hidden_size // config.num_attention_heads
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, layer_id) for layer_id in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.prefix_encoder: PrefixEncoder | None = None
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(
                config.pre_seq_len, config.num_layers, config.num_attention_heads, self.head_width,
                config.prefix_projection,
            )
        self.post_init()

    def forward(
        self,
        input_ids_BT: Tensor | None,
        position_ids: Tensor,
        visible: Tensor | None = None,
        cache: AnyCache | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, C] after the final norm.

        Args:
            input_ids_BT: token ids, or None with `inputs_embeds` [B, T, C].
            position_ids: [B, 2, T], or [B, T] with one position row.
            visible: bool [B, 1, T, S] without the prefix's columns, True = may be seen; None = everything is.
            cache: filled with this call's keys and values, and attended to.
            inputs_embeds: embeddings to use in place of `input_ids_BT`.
            hidden_states: if given, receives the input of every layer and the result.
            probabilities: if given, receives every layer's attention [B, H, T, S].
        """
        x_BTC = self.word_embeddings(input_ids_BT) if inputs_embeds is None else inputs_embeds
        tables = head_tables(position_ids, self.head_width, x_BTC.dtype)
        prefixes = self._prefixes(x_BTC, cache)
        if self.prefix_encoder is not None and visible is not None:
            visible = F.pad(visible, (self.config.pre_seq_len, 0), value=True)
        for layer, prefix in zip(self.layers, prefixes, strict=True):
            if hidden_states is not None:
                hidden_states.append(x_BTC)
            x_BTC = layer(x_BTC, tables, visible, cache, prefix, probabilities)
        x_BTC = self.final_layernorm(x_BTC)
        if hidden_states is not None:
            hidden_states.append(x_BTC)
        return x_BTC

    def _prefixes(self, x_BTC: Tensor, cache: AnyCache | None) -> list[Pair | None]:
        """The prefix of each layer where it must be put in front: in the first call, before the cache holds it."""
        if self.prefix_encoder is None or (cache is not None and cache.get_seq_length() > 0):
            return [None] * len(self.layers)
        return list(self.prefix_encoder(x_BTC.shape[0], x_BTC.dtype))


class ChatGLMForConditionalGeneration(ChatMixin, ChatGLMPreTrainedModel, GenerationMixin):
    """The network with its output head; what `AutoModel.from_pretrained` returns for a chatglm-6b folder."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012
    visibility = "prefix"
    # Set by chatglm.registration: examining a folder belongs to a floor above this one.
    check_folder: ClassVar[Callable[[Any], object] | None] = None
    encode_chat = staticmethod(encode_chat)

    def __init__(self, config: ChatGLMConfig) -> None:
        refuse_quantized(config)
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if config.pre_seq_len is not None:
            self.requires_grad_(False)
            self.transformer.prefix_encoder.requires_grad_(True)

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
            position_ids: [B, 2, T] (or [B, T] with one row). None: derived from `input_ids`; needed with a filled cache.
            past_key_values: a transformers Cache or a KVCache, filled in place.
            inputs_embeds: [B, T, C] in place of `input_ids`; `position_ids` must be given.
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
        self, input_ids: Tensor | None, attention_mask: Tensor | None, position_ids: Tensor | None,
        cache: AnyCache | None, inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Position ids and visibility of a call, derived where the caller left them out."""
        num_past = self._num_past(cache)
        full_mask = attention_mask is not None and attention_mask.dim() == 4
        if num_past or inputs_embeds is not None or (full_mask and position_ids is not None):
            if position_ids is None:
                raise InvalidRequestError(
                    "position_ids are missing: they cannot be derived without the whole input_ids.",
                    "Give position_ids with a filled cache or with inputs_embeds.",
                )
            if full_mask:
                return position_ids, some_visible(~attention_mask.bool())
            return position_ids, causal_after(num_past, position_ids, attention_mask)
        layout = find_layout(input_ids, self.config, None if full_mask else attention_mask)
        stop = input_ids.shape[1]
        if position_ids is None:
            position_ids = layout.positions(0, stop)
        if full_mask:
            return position_ids, some_visible(~attention_mask.bool())
        return position_ids, layout.visible(0, stop, attention_mask)

    def _num_past(self, cache: AnyCache | None) -> int:
        """Real positions in a cache, the prefix not counted."""
        stored = cache.get_seq_length() if cache is not None else 0
        return max(0, int(stored) - (self.config.pre_seq_len or 0))

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` tokens (it grows beyond that)."""
        return KVCache(self.config.num_layers, capacity + (self.config.pre_seq_len or 0))

    def prompt_layout(self, input_ids: Tensor) -> Layout:
        """Positions of a request whose prompt is `input_ids` [B, T], for `prefill` and `decode`."""
        return find_layout(input_ids, self.config)

    def prefill(self, input_ids: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Scores [1, V] after a prompt [1, T] that ends with `<sop>` (and possibly the start of an answer).

        The context is one pass with no mask, since all of it sees all of it; `<sop>` is the first decode step.
        """
        context = int(layout.sop[0])
        self.transformer(input_ids[:, :context], layout.positions(0, context), None, cache)
        positions = layout.positions(context, input_ids.shape[1])
        hidden_BTC = self.transformer(input_ids[:, context:], positions, causal_after(context, positions), cache)
        return self.lm_head(hidden_BTC[:, -1])

    def decode(self, input_ids: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Scores [1, V] after one more token id [1, 1]."""
        column = self._num_past(cache)
        hidden_BTC = self.transformer(input_ids, layout.positions(column, column + 1), None, cache)
        return self.lm_head(hidden_BTC[:, -1])

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the library's; takes the tokenizer's padded [B, 1, T, T] mask too, and refuses NaN and infinite scores.

        Raises:
            InvalidScoresError: the network produced NaN or infinity.
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


def refuse_quantized(config: ChatGLMConfig) -> None:
    """Raise UnsupportedModelError for a configuration whose weights are stored as integers."""
    if config.quantization_bit:
        raise UnsupportedModelError(
            f"The configuration asks for quantized layers (quantization_bit {config.quantization_bit}), "
            "which this version cannot load yet.",
            "Use the unquantized chatglm-6b folder.",
        )


def causal_after(num_past: int, position_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
    """All of the past, causal among the new: bool [B or 1, 1, T, num_past + T]; None when that is everything."""
    num_new = position_ids.shape[-1]
    if num_new == 1 and (attention_mask is None or bool(attention_mask.all())):
        return None
    seen = torch.ones(num_new, num_past + num_new, dtype=torch.bool, device=position_ids.device).tril(num_past)
    if attention_mask is None:
        return seen[None, None]
    return some_visible((seen & attention_mask.bool()[:, None])[:, None])


def some_visible(visible: Tensor) -> Tensor:
    """Let a query that sees nothing (a pad) see everything, so that its unread output is finite."""
    return visible | ~visible.any(dim=-1, keepdim=True)
