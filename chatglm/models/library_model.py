"""A family's network for transformers: configuration and class that `AutoModel` returns, and that training uses.

Shapes: B rows, T positions of this call, S positions incl. the cache, C model width, V vocabulary.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from chatglm.errors import InvalidRequestError, UnsupportedModelError
from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.generation.sampling import require_finite
from chatglm.kernels.packing import check_bits, check_group_size
from chatglm.model_spec import ModelSpec
from chatglm.models import family_of
from chatglm.models.library_folder import stored_generation_config, with_index_metadata
from chatglm.models.network_config import NetworkConfig
from chatglm.nn.attention import Causal, causal_after, some_visible
from chatglm.nn.kv_cache import AnyCache, uses_adapter
from chatglm.nn.lora import merged_state, updates_for
from chatglm.nn.sharding import check_ranks
from chatglm.quantization.layer_swap import make_room, quantize_network
from chatglm.schema import FLAG, Rules, first_mistake, list_of, one_of, text

logger = logging.getLogger(__name__)

# What transformers reads in a config.json beside the network's keys.
LIBRARY_RULES: Rules = {
    "architectures": list_of(text(200)).or_none(),
    "transformers_version": text(100).or_none(),
    **dict.fromkeys(("dtype", "torch_dtype"), one_of("float32", "float16", "bfloat16").or_none()),
    **dict.fromkeys(("return_dict", "output_attentions", "output_hidden_states"), FLAG.or_none()),
}
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class LibraryConfig(PreTrainedConfig):
    """A family's `NetworkConfig` (parameters, errors) for transformers."""

    keys_to_ignore_at_inference = ["past_key_values"]
    network_config: ClassVar[type[NetworkConfig]]

    def __init__(self, **kwargs: Any) -> None:
        named = self.network_config.own_names(kwargs)
        names = self.network_config.names()
        own = self.network_config.from_keys({name: named.pop(name) for name in names if name in named})
        for name in names:
            if name not in SPECIAL_IDS:
                setattr(self, name, getattr(own, name))
        super().__init__(**{name: getattr(own, name) for name in SPECIAL_IDS if name in names}, **named)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the library's, for the family that the keys and the folder are of, which may be another than this one's.

        Keys of a config.json that are unknown here are left out: some make the library fetch and run code. Raises
        InvalidRequestError for a wrong value of the others.
        """
        folder = kwargs.get("name_or_path") or config_dict.get("name_or_path")
        family = family_of({"model_type": cls.model_type, **config_dict}, Path(folder) if folder else None)
        if family.config_class is not cls:
            return family.config_class.from_dict(config_dict, **kwargs)
        if mistake := first_mistake(config_dict, LIBRARY_RULES):
            raise InvalidRequestError(f"{mistake}.")
        known = {*cls.network_config.names(), *cls.network_config.aliases, *LIBRARY_RULES}
        return super().from_dict({key: config_dict[key] for key in config_dict if key in known}, **kwargs)


class LibraryModel(PreTrainedModel, GenerationMixin):
    """Behind a family's network in the bases of a class, makes it a model of the library's; see `ChatGLMNetwork`."""

    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    # Scales would lose three bits as bfloat16.
    _keep_in_fp32_modules_strict = ["weight_scale"]
    # Set by chatglm.registration: validating a folder belongs to a layer above this one.
    check_folder: ClassVar[Callable[[Any], object] | None] = None
    config: Any
    transformer: Any
    spec: ModelSpec
    build: Callable[[], None]
    find_layout: Callable[..., Any]
    # Of PreTrainedModel, whose annotations change between releases.
    post_init: Callable[[], None]
    loss_function: Callable[..., Tensor]
    generation_config: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.build()
        make_room(self)
        if config.quantization_embedding_bit:
            names = ("weight", "weight_scale")
            self._tied_weights_keys = {f"{self.spec.head}.{name}": f"{self.spec.embedding}.{name}" for name in names}
        self.post_init()
        if self.transformer.prefix_encoder is not None:
            self.requires_grad_(False)
            self.transformer.prefix_encoder.requires_grad_(True)

    @property
    def stored_defaults(self) -> dict[str, Any]:
        return {name: getattr(self.generation_config, name, None) for name in CHAT_DEFAULTS}

    @stored_defaults.setter
    def stored_defaults(self, settings: dict[str, Any]) -> None:
        self.generation_config.update(**settings)

    def quantize(self, bits: int, empty_init: bool = False, *, group_size: int = 0, **unused: Any) -> Any:
        """Pack the linear layers of every block; returns the model. An attached LoRA update stays as it is.

        `bits`: 4 or 8; 0 = no change. `empty_init`: only room for weights. `group_size`: 32, 64 or 128 columns, which
        must divide rows, share a scale; 0, as upstream, a whole row. Else raises InvalidRequestError.
        """
        if bits == 0:
            return self
        check_bits(bits)
        if self.config.quantization_bit:
            logger.warning("Already quantized to %d bits.", self.config.quantization_bit)
            return self
        for linear in self.spec.linears:  # all layers before any is replaced
            check_bits(bits, linear.columns)
            check_group_size(group_size, linear.columns)
        self.config.quantization_bit, self.config.quantization_group_size = bits, group_size
        if empty_init:
            make_room(self)
        else:
            quantize_network(self)
        return self

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's, running no code of the folder.

        Raises CheckpointError first for files of a local folder that cannot work.
        """
        kwargs.pop("trust_remote_code", None)
        path = pretrained_model_name_or_path
        if not isinstance(path, str | os.PathLike) or not os.path.isdir(path) or "state_dict" in kwargs:
            return super().from_pretrained(path, *args, **kwargs)
        if cls.check_folder is not None:
            cls.check_folder(path)
        if kwargs.get("generation_config") is None:
            kwargs["generation_config"] = stored_generation_config(Path(path))
        with with_index_metadata(Path(path)) as folder:
            loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(path)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's, with LoRA merged into the files; raises InvalidRequestError if it is on packed weights."""
        if len(args) < 2 and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = merged_state(self)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's `from_pretrained` calls it, after refusing what it cannot split."""
        num_ranks = getattr(distributed_config, "tp_size", None) or 1
        if num_ranks > 1:
            _check_library_can_shard(model, num_ranks)
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie lm_head to the embedding if the files hold one of them or two equal ones; a new network stays untied."""
        if missing_keys is not None:
            super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.spec.embedding)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.set_submodule(self.spec.embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule(self.spec.head)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.set_submodule(self.spec.head, new_embeddings)

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

        `input_ids` int64 [B, T]: the whole sequence, or the ids that follow a filled cache. `attention_mask` [B, S], 1
        = real token (S counts the cache, not the prefix), or upstream's bool [B, 1, T, S], True = hidden; None = a
        leading run of pad ids is padding. `position_ids` [B, 2, T], or [B, T] with one row; None = derived from
        `input_ids`; needed with a filled cache. `past_key_values`: a transformers Cache or KVCache, filled in place.
        `inputs_embeds` [B, T, C] needs `position_ids` and a 4-D mask. `labels` int64 [B, T], -100 = ignored; shifted
        here, loss in float32. `output_hidden_states`: the input of every layer and the result of the final norm, each
        [B, T, C]. `output_attentions`: probabilities, each [B, H, T, S]. `logits_to_keep`: last n positions; 0 = all.
        `kwargs`: `num_items_in_batch` for the loss. Raises InvalidRequestError if positions cannot be derived.
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
            logits = self.get_output_embeddings()(hidden_BTC[:, -logits_to_keep:] if logits_to_keep else hidden_BTC)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.spec.vocab_size, **kwargs)
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
    ) -> tuple[Tensor, Tensor | Causal | None]:
        """Position ids and visibility of a call, derived where the caller left them out."""
        num_past = self._num_past(cache)
        visible = None
        if attention_mask is not None and attention_mask.dim() == 4:
            visible, attention_mask = some_visible(~attention_mask.bool()), None
        if position_ids is None and num_past and input_ids is not None:
            position_ids = self.positions_after(num_past, input_ids, attention_mask)
        if position_ids is not None and visible is not None:
            return position_ids, visible
        if position_ids is not None and num_past:
            return position_ids, causal_after(num_past, position_ids, attention_mask)
        if input_ids is None or num_past:
            raise InvalidRequestError(
                "Positions and visibility cannot be derived without the whole input_ids.",
                "Give position_ids with a filled cache; position_ids and a 4-D attention_mask with inputs_embeds.",
            )
        layout = self.find_layout(input_ids, attention_mask)
        stop = input_ids.shape[1]
        if position_ids is None:
            position_ids = layout.positions(0, stop)
        return position_ids, layout.visible(0, stop, attention_mask) if visible is None else visible

    def positions_after(self, num_past: int, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Positions of ids that follow a filled cache, where they depend on nothing else; `attention_mask` [B, S]."""
        return None

    def _num_past(self, cache: AnyCache | None) -> int:
        """Real positions in a cache, the prefix not counted."""
        stored = cache.get_seq_length() if cache is not None else 0
        prefix = (self.config.pre_seq_len or 0) if uses_adapter(cache) else 0
        return max(0, int(stored) - prefix)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the library's; takes the padded [B, 1, T, T] mask too. Raises InvalidLogitsError for NaN or infinity."""
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            # The last row sees every real token; positions are derived again from ids and pads.
            kwargs["attention_mask"] = (~mask[:, 0, -1].bool()).long()
        kwargs.pop("position_ids", None)
        if kwargs.get("logits_processor") is not None:
            kwargs["logits_processor"] = LogitsProcessorList(kwargs["logits_processor"])
        return super().generate(inputs, *args, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        # Every way of decoding comes here with the logits as they are; processors see those that others have changed.
        require_finite(outputs.logits[:, -1])
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Re-derive the positions from the whole row at each step, whatever the library kept or dropped."""
        layout = self.find_layout(input_ids, attention_mask)
        kwargs["position_ids"] = layout.positions(0, input_ids.shape[1])
        return super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)


def _check_library_can_shard(model: Any, num_ranks: int) -> None:
    """Refuse what transformers would get wrong, or end the process with."""
    config = model.config
    check_ranks(model.spec, config, num_ranks)
    is_packed = config.quantization_bit or config.quantization_embedding_bit
    if is_packed or config.pre_seq_len is not None or not model._tp_plan:
        what = "packed weights" if is_packed else "a P-Tuning prefix" if model._tp_plan else "grouped heads"
        raise UnsupportedModelError(
            f"transformers cannot shard {what} over processes.",
            "chatglm.load_pipeline(..., tensor_parallel=True) can.",
        )
