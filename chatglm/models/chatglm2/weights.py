"""Names, shapes and conventions of the weights of ChatGLM2-6B and what followed it (`ModelSpec`)."""

from __future__ import annotations

from typing import Any

from chatglm.generation.text import TRAINING_TIME, Replacer, Stripper
from chatglm.model_spec import LinearSpec, ModelSpec, TextStage

CHAT_DEFAULTS = {"max_length": 8192, "do_sample": True, "top_p": 0.8, "temperature": 0.8}


def answer_stages() -> list[TextStage]:
    """Upstream's `process_response`: strip, and the year for `[[训练时间]]`."""
    return [Stripper(), Replacer(*TRAINING_TIME)]


def model_spec(config: Any, **conventions: Any) -> ModelSpec:
    """The spec of a network of this configuration; `conventions` are what another family does differently."""
    width, inner = config.hidden_size, config.ffn_hidden_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    is_interleaved = not config.multi_query_attention
    per_group = heads if is_interleaved else 1
    rows = [("query", heads), ("key", groups), ("value", groups)]
    segments = tuple((name, number // per_group * config.kv_channels) for name, number in rows)
    fields: dict[str, Any] = {
        "layers": "transformer.encoder.layers",
        "embedding": "transformer.embedding.word_embeddings",
        "final_norm": "transformer.encoder.final_layernorm",
        "head": "transformer.output_layer",
        "prefix_projection": (2 * config.num_layers * groups * config.kv_channels, width),
        "linears": (
            LinearSpec("self_attention.query_key_value", width, segments, num_groups=per_group),
            LinearSpec("self_attention.dense", heads * config.kv_channels, (("output", width),), sharded="columns"),
            LinearSpec("mlp.dense_h_to_4h", width, (("gate", inner), ("up", inner))),
            LinearSpec("mlp.dense_4h_to_h", inner, (("down", width),), sharded="columns"),
        ),
        "num_layers": config.num_layers,
        "hidden_size": width,
        "vocab_size": config.padded_vocab_size,
        "num_heads": heads,
        "num_kv_heads": groups,
        "head_width": config.kv_channels,
        "context_limit": config.seq_length,
        "eos_ids": config.eos_ids,
        "pad_id": config.pad_token_id,
        "visibility": "causal",
        "chat_defaults": CHAT_DEFAULTS,
        "clean_up": answer_stages,
        "ties_embedding": config.tie_word_embeddings,
        "ignored_tensors": (r"rotary_pos_emb\.inv_freq",),
        "foreign_tensors": {"transformer.layers.": "ChatGLM-6B"},
    }
    return ModelSpec(**{**fields, **conventions})
