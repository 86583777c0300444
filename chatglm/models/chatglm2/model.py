"""ChatGLM2-6B for transformers: what `AutoConfig` and `AutoModel` return for its folder, and training uses."""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm.models.chatglm2.config import ChatGLM2NetworkConfig, Derived
from chatglm.models.chatglm2.network import ChatGLM2Network
from chatglm.models.library_model import LibraryConfig, LibraryModel
from chatglm.models.upstream_chat import RoundsChat


class ChatGLM2Config(Derived, LibraryConfig):
    """`ChatGLM2NetworkConfig` (parameters, errors) for transformers."""

    __init__ = LibraryConfig.__init__  # or the library would write one
    model_type = "chatglm"
    network_config = ChatGLM2NetworkConfig
    attribute_map = ChatGLM2NetworkConfig.aliases
    tokenizer_class = "ChatGLM2Tokenizer"  # where tokenizer_config.json names none


class CausalModel(LibraryModel):
    """`LibraryModel` for `ChatGLM2Network`."""

    # Published files store these; they are computed here (see nn/rotary.py).
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]
    _tied_weights_keys = {"transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight"}

    def positions_after(self, num_past: int, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is not None:
            return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, num_past:]
        return torch.arange(num_past, num_past + input_ids.shape[1], device=input_ids.device)[None]


class ChatGLM2ForConditionalGeneration(ChatGLM2Network, RoundsChat, CausalModel):
    """The network with its output head; what `AutoModel.from_pretrained` returns for a chatglm2-6b folder."""

    __init__ = CausalModel.__init__
    forward = CausalModel.forward  # type: ignore[assignment]
    config_class = ChatGLM2Config
