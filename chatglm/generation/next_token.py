"""From the scores of a step to the next id of one request.

Knows: the ids so far, penalties, the minimum length, drawing, the end token. Does not know how scores are made.
Shapes: V vocabulary, n ids of prompt and answer so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chatglm.generation.config import GenerationConfig
from chatglm.generation.sampling import forbid, new_generator, penalize_repetition, pick, require_finite

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


class NextToken:
    """One request's ids, and its own random source.

    Attributes:
        ids: int64 [1, n], prompt and answer.
        num_made: ids of the answer; the end token is none.
        config: sampling and minimum length.
        end_id: the id that ends the answer.
        end_from: ids of prompt and answer below which it may not end.
        processors: transformers' logits processors.
    """

    def __init__(
        self,
        input_ids: Tensor,
        config: GenerationConfig,
        end_id: int,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        """Begin with a prompt.

        Args:
            input_ids: of the prompt, int64 [1, n].
            config: sampling and minimum length; its own end token goes before `end_id`.
            end_id: the model's end token.
            processors: transformers' logits processors, called with ids [1, n] and scores [1, V].
        """
        self.ids = input_ids
        self.num_made = 0
        self.config = config
        self.end_id = end_id if config.eos_token_id is None else config.eos_token_id
        # The answer may not end before there are so many ids.
        self.end_from = max(config.min_length, input_ids.shape[1] + config.min_new_tokens)
        self.processors = processors
        self._generator = new_generator(config.seed, input_ids.device)

    def take(self, scores: Tensor) -> int | None:
        """The id that follows, or None for the end of the answer.

        Args:
            scores: [1, V] after the last of `ids`.

        Raises:
            InvalidLogitsError: NaN or infinity among them.
        """
        require_finite(scores)
        for processor in self.processors:
            scores = processor(self.ids, scores)
        scores_V = penalize_repetition(scores[0].float(), self.ids[0], self.config.repetition_penalty)
        if self.ids.shape[1] < self.end_from:
            scores_V = forbid(scores_V, self.end_id)
        return self.accept(pick(scores_V, self.config, self._generator))

    def accept(self, token_id: int) -> int | None:
        """The id that was chosen elsewhere follows; returns it, or None for the end of the answer."""
        if token_id == self.end_id:
            return None
        self.num_made += 1
        self.ids = torch.cat((self.ids, self.ids.new_tensor([[token_id]])), dim=1)
        return token_id
