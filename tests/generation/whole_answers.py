"""What upstream's `process_response` makes of a whole answer, which streamed ones must come to."""

from __future__ import annotations

import re

from chatglm.generation.text import TRAINING_TIME, WIDE_MARKS

MARK_BESIDE_CHINESE = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


def clean_up(text: str) -> str:
    """Strip, the year for `[[训练时间]]`, wide `,!:;?` beside a Chinese character."""
    text = text.strip().replace(*TRAINING_TIME)
    return MARK_BESIDE_CHINESE.sub(lambda mark: mark.group().translate(WIDE_MARKS), text)
