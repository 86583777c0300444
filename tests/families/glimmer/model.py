"""Glimmer for transformers: configuration and model classes around the plain network."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.families.glimmer.config import MODEL_TYPE, GlimmerNetworkConfig
from tests.families.glimmer.network import GlimmerNetwork


class GlimmerConfig(PreTrainedConfig):
    """A `GlimmerNetworkConfig` with what transformers needs."""

    model_type = MODEL_TYPE

    def __init__(self, **kwargs: Any) -> None:
        own = vars(GlimmerNetworkConfig.from_keys(kwargs))
        super().__init__(**{**kwargs, **own})


class GlimmerForConditionalGeneration(GlimmerNetwork, PreTrainedModel):
    """The network as `from_pretrained` returns it; it computes logits and a loss."""

    config_class = GlimmerConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = None

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.build()
        self.post_init()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> CausalLMOutputWithPast:
        """Logits [B, T, V], and the loss where labels [B, T] are given (-100 = ignored)."""
        logits = GlimmerNetwork.forward(self, input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)
