"""Names, shapes and conventions of Glimmer's weights (`ModelSpec`)."""

from __future__ import annotations

from chatglm.model_spec import LinearSpec, ModelSpec
from tests.families.glimmer.config import GlimmerNetworkConfig

CHAT_DEFAULTS = {"max_length": 128, "do_sample": True, "temperature": 0.8, "top_p": 0.8, "top_k": 0}


def model_spec(config: GlimmerNetworkConfig) -> ModelSpec:
    """The spec of a network of this configuration."""
    width, inner = config.hidden_size, config.ffn_hidden_size
    queries, shared = (
        heads * config.kv_channels for heads in (config.num_attention_heads, config.multi_query_group_num)
    )
    return ModelSpec(
        layers="transformer.encoder.layers",
        embedding="transformer.embedding.word_embeddings",
        final_norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
        prefix_projection=(width, width),
        linears=(
            LinearSpec(
                "self_attention.query_key_value", width, (("query", queries), ("key", shared), ("value", shared))
            ),
            LinearSpec("self_attention.dense", queries, (("output", width),), sharded="columns"),
            LinearSpec("mlp.dense_h_to_4h", width, (("gate", inner), ("up", inner))),
            LinearSpec("mlp.dense_4h_to_h", inner, (("down", width),), sharded="columns"),
        ),
        num_layers=config.num_layers,
        hidden_size=width,
        vocab_size=config.padded_vocab_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.multi_query_group_num,
        head_width=config.kv_channels,
        context_limit=config.seq_length,
        eos_ids=tuple(config.eos_token_id),
        pad_id=config.pad_token_id,
        visibility="causal",
        chat_defaults=CHAT_DEFAULTS,
        ignored_tensors=(r"rotary_pos_emb\.inv_freq",),
    )
