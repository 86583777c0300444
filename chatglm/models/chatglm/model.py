"""ChatGLM-6B for transformers: what `AutoConfig` and `AutoModel` return for a chatglm-6b folder, and training uses."""

from __future__ import annotations

from chatglm.models.chatglm.config import ChatGLMNetworkConfig
from chatglm.models.chatglm.network import ChatGLMNetwork
from chatglm.models.library_model import LibraryConfig, LibraryModel
from chatglm.models.upstream_chat import UpstreamChat


class ChatGLMConfig(LibraryConfig):
    """`ChatGLMNetworkConfig` (parameters, errors) for transformers."""

    __init__ = LibraryConfig.__init__  # or the library would write one
    model_type = "chatglm"
    network_config = ChatGLMNetworkConfig
    attribute_map = ChatGLMNetworkConfig.aliases
    tokenizer_class = "ChatGLMTokenizer"  # where tokenizer_config.json names none


class ChatGLMForConditionalGeneration(ChatGLMNetwork, UpstreamChat, LibraryModel):
    """The network with its output head; what `AutoModel.from_pretrained` returns for a chatglm-6b folder."""

    __init__ = LibraryModel.__init__
    forward = LibraryModel.forward  # type: ignore[assignment]
    config_class = ChatGLMConfig
    # Published files store these; they are computed here (see nn/rotary.py).
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}
    # What several processes have of a layer when they shard the network by transformers' own means. Query, key and
    # value of a head lie behind one another, so that a part of the rows is a part of the heads.
    _tp_plan = {
        "transformer.word_embeddings": "embedding_rowwise",
        "transformer.layers.*.attention.query_key_value": "colwise",
        "transformer.layers.*.attention.dense": "rowwise",
        "transformer.layers.*.mlp.dense_h_to_4h": "colwise",
        "transformer.layers.*.mlp.dense_4h_to_h": "rowwise",
        "lm_head": "colwise_gather_output",
    }
