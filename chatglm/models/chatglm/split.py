"""What transformers' own tensor parallelism cannot do with a ChatGLM-6B network."""

from __future__ import annotations

from typing import Any

from chatglm.errors import InvalidRequestError, UnsupportedModelError

MOST_RANKS = 64


def check_ranks(config: Any, num_ranks: int) -> None:
    """Raise InvalidRequestError unless `num_ranks` processes can each have whole heads and equal shares of the rest."""
    if problem := _obstacle(config, num_ranks):
        possible = [str(number) for number in range(1, MOST_RANKS + 1) if not _obstacle(config, number)]
        raise InvalidRequestError(
            f"{num_ranks} processes cannot share this model: {problem}.", f"Start one of {', '.join(possible)}."
        )


def check_distributed(config: Any, distributed: Any) -> None:
    """Raise InvalidRequestError for unequal shares, UnsupportedModelError for packed weights or a trained prefix."""
    num_ranks = getattr(distributed, "tp_size", None) or 1
    if num_ranks == 1:
        return
    check_ranks(config, num_ranks)
    is_packed = config.quantization_bit or config.quantization_embedding_bit
    if is_packed or config.pre_seq_len is not None:
        raise UnsupportedModelError(
            f"transformers cannot split {'packed weights' if is_packed else 'a P-Tuning prefix'} over processes.",
            "chatglm.load_pipeline(..., tensor_parallel=True) can.",
        )


def _obstacle(config: Any, num_ranks: int) -> str:
    """What does not divide, in a few words; "" if everything does."""
    sizes = {
        "attention heads": config.num_attention_heads,
        "columns of the MLP": config.inner_hidden_size,
        "rows of the vocabulary": config.vocab_size,
    }
    for name, size in sizes.items():
        if size % num_ranks:
            return f"its {size} {name} do not divide by {num_ranks}"
    # A byte holds two int4 columns, and a scale belongs to a whole group of them.
    unit = config.quantization_group_size or (2 if config.quantization_bit == 4 else 1)
    for size in (config.hidden_size, config.inner_hidden_size):
        if size % (unit * num_ranks):
            return f"rows of {size} weights do not divide into {num_ranks} shares of whole groups of {unit}"
    return ""
