"""Names, shapes and conventions of ChatGLM-6B's weights (`ModelSpec`)."""

from __future__ import annotations

from typing import Any

from chatglm.generation.config import CHAT_DEFAULTS
from chatglm.generation.text import TRAINING_TIME, Replacer, Stripper, Widener
from chatglm.model_spec import LinearSpec, ModelSpec, TextStage


def answer_stages() -> list[TextStage]:
    """Upstream's `process_response`: strip, the year for `[[训练时间]]`, wide punctuation beside Chinese."""
    return [Stripper(), Replacer(*TRAINING_TIME), Widener()]


def model_spec(config: Any) -> ModelSpec:
    """The spec of a network of this configuration."""
    width, inner = config.hidden_size, config.inner_hidden_size
    return ModelSpec(
        layers="transformer.layers",
        embedding="transformer.word_embeddings",
        final_norm="transformer.final_layernorm",
        head="lm_head",
        prefix_encoder="transformer.prefix_encoder",
        prefix_projection=(width, width),
        linears=(
            LinearSpec(
                "attention.query_key_value",
                width,
                (("query", width), ("key", width), ("value", width)),
                num_groups=config.num_attention_heads,
            ),
            LinearSpec("attention.dense", width, (("output", width),), sharded="columns"),
            LinearSpec("mlp.dense_h_to_4h", width, (("up", inner),)),
            LinearSpec("mlp.dense_4h_to_h", inner, (("down", width),), sharded="columns"),
        ),
        num_layers=config.num_layers,
        hidden_size=width,
        vocab_size=config.vocab_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_width=width // config.num_attention_heads,
        context_limit=config.max_sequence_length,
        eos_ids=(config.eos_token_id,),
        pad_id=config.pad_token_id,
        visibility="prefix",
        chat_defaults=CHAT_DEFAULTS,
        learned_prompt_tokens=1,
        clean_up=answer_stages,
        ties_embedding=True,
        ignored_tensors=(r"rotary_emb\.inv_freq",),
        foreign_tensors={"transformer.encoder.": "ChatGLM2 or ChatGLM3"},
        releases={150528: "the first release", 130528: "version 1.1, since April 2023"},
    )
