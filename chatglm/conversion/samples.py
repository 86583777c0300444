"""Texts for calibration and evaluation: a file of them becomes token ids as the model sees them when it chats.

    plain text      pieces of equal length; the first half of each is the prompt, the second is what is to be said
    JSON lines      {"prompt": ..., "response": ..., "history": [[question, answer], ...]}, `history` may be absent;
                    {"content": ..., "summary": ...} is read as prompt and response

Shapes: T tokens of a sample.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from chatglm.checkpoints.validate import ValidationReport
from chatglm.errors import ChatGLMError, InvalidRequestError
from chatglm.messages import History, check_history, to_messages
from chatglm.sizes import format_bytes

LONGEST = 512  # tokens of a sample
MAX_FILE_BYTES = 64 * 2**20
KEYS = (("prompt", "response"), ("content", "summary"))
BUNDLED = Path(__file__).with_name("conversations.jsonl")


@dataclass(frozen=True)
class Sample:
    """Prompt and answer ids; `first` is the column from which the answer's first token is predicted."""

    input_ids: list[int]
    first: int


def read_samples(path: Path, report: ValidationReport, num_tokens: int, min_tokens: int, seed: int) -> list[Sample]:
    """About `num_tokens` of shuffled samples from plain UTF-8 text, or JSON lines if `path` ends in .jsonl.

    Raises ChatGLMError if it cannot be read, InvalidRequestError for less than `min_tokens` or lines of another form.
    """
    text = _read_text(path)
    codec = _Codec(report)
    samples = list(_conversations(path, text, codec) if path.suffix == ".jsonl" else _pieces(text, codec))
    random.Random(seed).shuffle(samples)
    chosen: list[Sample] = []
    count = 0
    for sample in samples:
        if count >= num_tokens:
            break
        chosen.append(sample)
        count += len(sample.input_ids)
    if count < min_tokens:
        raise InvalidRequestError(f"{path} has {count} tokens of text; at least {min_tokens} are needed.")
    return chosen


def count_tokens(samples: Sequence[Sample]) -> int:
    """Tokens of all samples, prompts included."""
    return sum(len(sample.input_ids) for sample in samples)


def _read_text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            sizes = f"{format_bytes(size)} of text; {format_bytes(MAX_FILE_BYTES)} are read at most"
            raise ChatGLMError(f"{path} has {sizes}.", "Give a part of it.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ChatGLMError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ChatGLMError(f"{path} is not UTF-8 text.", "Convert it, or give another file.") from None


class _Codec:
    def __init__(self, report: ValidationReport) -> None:
        assert report.family is not None  # a healthy report has one
        self.tokenizer = report.tokenizer
        self.encode_chat: Callable[..., Any] = cast(Any, report.family).encode_chat
        self.spec = report.family.spec(report.config)
        self.longest = min(LONGEST, self.spec.context_limit)

    def sample(self, prompt: list[int], answer: list[int]) -> Sample:
        """Prompt ids, special ones included, and answer ids; what is too long loses its beginning or its end."""
        answer = answer[: self.longest // 2]
        prompt = prompt[-(self.longest - len(answer)) :]
        return Sample(prompt + answer, len(prompt) - 1)


def _pieces(text: str, codec: _Codec) -> Iterator[Sample]:
    ids: list[int] = codec.tokenizer.encode_plain(text)
    for start in range(0, len(ids), codec.longest - 2):
        piece = ids[start : start + codec.longest - 2]
        if len(piece) > 1:
            half = len(piece) // 2
            yield codec.sample(codec.tokenizer.build_inputs_with_special_tokens(piece[:half]), piece[half:])


def _conversations(path: Path, text: str, codec: _Codec) -> Iterator[Sample]:
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt, response, history = _fields(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequestError(
                f"Line {number} of {path} is no conversation ({error}).",
                'Each line is {"prompt": "...", "response": "..."}; plain text belongs in a .txt file.',
            ) from None
        asked = codec.encode_chat(codec.tokenizer, to_messages(prompt, history), 10**9).input_ids
        yield codec.sample(asked, [*codec.spec.encode_answer(codec.tokenizer, response), codec.spec.eos_ids[0]])


def _fields(row: Any) -> tuple[str, str, History]:
    """Prompt, response and history of one line; raises ValueError or TypeError for anything else."""
    if not isinstance(row, dict):
        raise ValueError("no object")
    for asked, answered in KEYS:
        if isinstance(row.get(asked), str) and isinstance(row.get(answered), str):
            return row[asked], row[answered], check_history(row.get("history"))
    raise ValueError("no prompt and response")
